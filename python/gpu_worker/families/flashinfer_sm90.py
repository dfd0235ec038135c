"""The family `flashinfer`: `fp8_blockscale_gemm_sm90` (TensorRT-LLM's kernels), SGLang's `flashinfer_deepgemm`."""

from gpu_worker.families import Unavailable
from gpu_worker.plan import Unsupported


class FlashInfer:
    """Takes quantised A with its scales by columns, each padded to 16 bytes. Compiled with nvcc at its first use."""

    name = "flashinfer"

    def __init__(self, torch, facts, cache_dir):
        if facts["arch"] != "sm_90":
            raise Unavailable(f"fp8_blockscale_gemm_sm90 is for sm_90, this is {facts['arch']}")
        try:
            import flashinfer
            from flashinfer.gemm import gemm_base
        except ImportError as error:
            raise Unavailable(f"flashinfer cannot be imported: {error}") from error
        self._torch = torch
        # The runner itself: the public function allocates a workspace at every call.
        self._runner = gemm_base.get_fp8_blockscale_gemm_runner_sm90()
        self._workspace = None
        self.version = flashinfer.__version__

    def launch(self, problem, operands, setting, block):
        """No setting."""
        if setting:
            raise Unsupported("a candidate of `flashinfer` has no settings")
        if problem.n % 64 or problem.k % 128 or tuple(block) != (128, 128):
            raise Unsupported("`flashinfer` takes N in 64s, K in 128s and blocks of 128 x 128")
        torch = self._torch
        size = self._runner.get_workspace_size(problem.m, problem.n, problem.k)
        if self._workspace is None or self._workspace.numel() < size:
            self._workspace = torch.empty(max(size, 1 << 20), dtype=torch.uint8, device=operands.out.device)
            self._runner.configure_workspace(self._workspace)
        # Each column of scales begins at a multiple of 16 bytes.
        padded = torch.nn.functional.pad(operands.a_scale, (0, 0, 0, -problem.m % 4)).t().contiguous()
        a, out, weights, run = operands.a, operands.out, operands.weights, self._runner.run_gemm

        def enqueue(copy):
            b, b_scale = weights[copy % len(weights)]
            run(a, b, out, padded, b_scale)

        return enqueue
