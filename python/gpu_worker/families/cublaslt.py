"""The family `cublaslt`: torch's block-scaled product (`torch._scaled_mm`), which hands it to cuBLASLt."""

from gpu_worker.families import Unavailable
from gpu_worker.plan import Unsupported


class CublasLt:
    """Takes the scales of A by columns; refuses what cuBLASLt has no kernel for (M = 1 with CUDA 13.0)."""

    name = "cublaslt"

    def __init__(self, torch, facts, cache_dir):
        if torch.version.hip:
            raise Unavailable("torch._scaled_mm takes block scales on CUDA only")
        self._torch = torch
        self.version = torch.__version__

    def launch(self, problem, operands, setting, block):
        """No setting."""
        if setting:
            raise Unsupported("a candidate of `cublaslt` has no settings")
        if tuple(block) != (128, 128) or problem.k // 128 % 4:
            # cuBLASLt wants the scales of B padded to fours; with K = 2304 it computed something else (13.0, H200).
            raise Unsupported("`cublaslt` takes blocks of 128 x 128 and K in 512s")
        torch = self._torch
        scales = operands.a_scale.t().contiguous().t()
        a, out = operands.a, operands.out
        weights = [(b.t(), b_scale.t()) for b, b_scale in operands.weights]

        def enqueue(copy):
            b, b_scale = weights[copy % len(weights)]
            torch._scaled_mm(a, b, scales, b_scale, out_dtype=out.dtype, out=out)

        return enqueue
