"""One fused MoE operation and its two GEMMs. Pure; no torch, no Triton."""

from dataclasses import dataclass

UP, DOWN = "up", "down"


@dataclass(frozen=True)
class MoeProblem:
    """A fused MoE on one rank: `tokens` of one forward, each sent to `topk` of `experts` local experts."""

    tokens: int
    experts: int
    """Local experts, a fused shared expert included: the E of SGLang's file names."""
    topk: int
    hidden: int
    inter: int
    """Columns of the activation between the GEMMs: the N of SGLang's file names, half of the up projection's rows."""
    shared: int = 0
    """Of `experts` and `topk`, the shared experts that SGLang fuses into the routed ones: every token goes to them."""
    dtype: str = "float8_e4m3fn"

    @property
    def pairs(self):
        """Rows of work: one for each token and each of its experts."""
        return self.tokens * self.topk

    def gemm(self, name):
        """(rows of A, N, K, what divides a pair's number to give its row of A) of the GEMM `name`."""
        if name == UP:
            return self.tokens, 2 * self.inter, self.hidden, self.topk
        return self.pairs, self.hidden, self.inter, 1

    def experts_hit(self):
        """Experts with at least one row, at most: every pair may go to another one, but all share the shared ones."""
        return min(self.experts, self.tokens * (self.topk - self.shared) + self.shared)

    def weight_bytes(self, name):
        """Bytes of FP8 weights that a GEMM reads when each pair hits another expert."""
        _, n, k, _ = self.gemm(name)
        return self.experts_hit() * n * k
