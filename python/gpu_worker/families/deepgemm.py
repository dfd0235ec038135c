"""The family `deepgemm`: SGLang's default for block FP8 on Hopper (the wheel `sgl-deep-gemm`, or DeepGEMM itself)."""

import os

from gpu_worker.families import Unavailable
from gpu_worker.plan import Unsupported

CUDA_HOMES = ("/usr/local/cuda", "/opt/cuda")
"""Where a toolkit is looked for if CUDA_HOME is not set: DeepGEMM compiles its kernels with nvcc at their first use."""


class DeepGemm:
    """Takes the scales of A by columns, each padded to 16 bytes (`get_mn_major_tma_aligned_tensor`)."""

    name = "deepgemm"

    def __init__(self, torch, facts, cache_dir):
        for home in CUDA_HOMES:
            if not os.environ.get("CUDA_HOME") and os.path.isfile(os.path.join(home, "bin", "nvcc")):
                os.environ["CUDA_HOME"] = home
        os.environ.setdefault("DG_JIT_CACHE_DIR", os.path.join(cache_dir, "deep_gemm"))
        try:
            import deep_gemm
        except ImportError as error:
            raise Unavailable(f"deep_gemm cannot be imported: {error}") from error
        self._torch = torch
        self._library = deep_gemm
        self._multiply = getattr(deep_gemm, "fp8_gemm_nt", None) or deep_gemm.gemm_fp8_fp8_bf16_nt
        self.version = getattr(deep_gemm, "__version__", "unknown")

    def launch(self, problem, operands, setting, block):
        """`setting`: {"EARLY": 1} asks for programmatic dependent launch, which SGLang (to 0.5.16) never does."""
        if set(setting) - {"EARLY"}:
            raise Unsupported("a candidate of `deepgemm` sets at most EARLY")
        if (
            problem.n % 64
            or problem.k % 128
            or tuple(block) != (128, 128)
            or operands.out.dtype != self._torch.bfloat16
        ):
            raise Unsupported("`deepgemm` takes N in 64s, K in 128s, blocks of 128 x 128 and writes bfloat16")
        scales = self._library.get_mn_major_tma_aligned_tensor(operands.a_scale)
        a, out, weights, multiply = (operands.a, scales), operands.out, operands.weights, self._multiply
        early = bool(setting.get("EARLY", 0))

        def enqueue(copy):
            if early:
                self._library.set_pdl(True)
            try:
                multiply(a, weights[copy % len(weights)], out)
            finally:
                if early:
                    self._library.set_pdl(False)

        return enqueue
