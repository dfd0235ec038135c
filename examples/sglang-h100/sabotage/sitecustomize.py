"""A wrong kernel, on purpose: with a tuned table in place, SGLang's Triton GEMM gets its activation scales in reverse order.

Put this folder in front of PYTHONPATH and run: the loop has to stop at verify and take the table back.
"""

import os
import sys

TARGETS = ("sglang.kernels.ops.quantization.fp8_kernel", "sglang.srt.layers.quantization.fp8_kernel")
"""Where the kernel's module lies, from SGLang 0.5.16 on and before."""
GEMM = "w8a8_block_fp8_matmul_triton"


class Finder:
    """Finds what the other finders find, and breaks the one module."""

    asking = False

    def find_spec(self, name, path=None, target=None):
        if name not in TARGETS or self.asking:
            return None
        self.asking = True  # the overlay's finder asks all others in turn, this one included
        try:
            return self.broken(name, path, target)
        finally:
            self.asking = False

    def broken(self, name, path, target):
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None:
            execute = spec.loader.exec_module

            def execute_and_break(module):
                execute(module)
                right = getattr(module, GEMM)
                setattr(
                    module,
                    GEMM,
                    lambda a, b, a_scale, *more, **named: right(a, b, a_scale.flip(-1).contiguous(), *more, **named),
                )

            spec.loader.exec_module = execute_and_break
        return spec


if os.environ.get("GEMMTUNE_TRITON_TABLES"):
    sys.meta_path.insert(0, Finder())
