"""The family `cutlass`: `fp8_blockwise_scaled_mm` of SGLang's kernel wheel (`sgl_kernel`)."""

from gpu_worker.families import Unavailable
from gpu_worker.plan import Unsupported


class Cutlass:
    """Takes the scales of A by columns, and rows of A in fours: SGLang pads them."""

    name = "cutlass"

    def __init__(self, torch, facts, cache_dir):
        try:
            import sgl_kernel
        except ImportError as error:
            raise Unavailable(f"sgl_kernel cannot be imported: {error}") from error
        if not hasattr(torch.ops.sgl_kernel, "fp8_blockwise_scaled_mm"):
            version = getattr(sgl_kernel, "__version__", "unknown")
            raise Unavailable(f"sgl_kernel {version} has no fp8_blockwise_scaled_mm for this device")
        self._torch = torch
        self.version = getattr(sgl_kernel, "__version__", "unknown")

    def launch(self, problem, operands, setting, block):
        """No setting."""
        if setting:
            raise Unsupported("a candidate of `cutlass` has no settings")
        if problem.n % 128 or problem.k % 128 or tuple(block) != (128, 128):
            raise Unsupported("`cutlass` takes N and K in 128s and blocks of 128 x 128")
        torch = self._torch
        missing = -problem.m % 4
        a = torch.nn.functional.pad(operands.a.view(torch.uint8), (0, 0, 0, missing)).view(operands.a.dtype)
        scales = torch.nn.functional.pad(operands.a_scale, (0, 0, 0, missing)).t().contiguous().t()
        out, m = operands.out, problem.m
        weights = [(b.t(), b_scale.t()) for b, b_scale in operands.weights]

        def enqueue(copy):
            b, b_scale = weights[copy % len(weights)]
            out.copy_(torch.ops.sgl_kernel.fp8_blockwise_scaled_mm.default(a, b, scales, b_scale, out.dtype)[:m])

        return enqueue
