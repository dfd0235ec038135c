"""What the environment asks of the overlay. Read once per process, before any hook is placed."""

import os

#: The playbook's two toggles: shapes into the server log, and the identity of the block-FP8 linear.
DUMP_SHAPES = "SGLANG_DUMP_AITER_FP8_GEMM_SHAPES"
LOG_DISPATCH = "SGLANG_LOG_FP8_BLOCK_GEMM_DISPATCH"
#: Folder for one record file per process.
RECORD_DIR = "GEMMTUNE_RECORD_DIR"
#: Folder of SGLang Triton tables (`N=…,K=…,device_name=…,dtype=fp8_w8a8,block_shape=[128, 128].json`).
TRITON_TABLES = "GEMMTUNE_TRITON_TABLES"
#: Folder of SGLang tables for fused MoE, in pairs (`E=…,N=….json` and `E=…,N=…_down.json`).
MOE_TABLES = "GEMMTUNE_MOE_TABLES"
#: Folder of files of aiter's Triton GEMM (`gfx942-GEMM-A8W8_BLOCKSCALE-N=…-K=….json`).
AITER_TRITON = "GEMMTUNE_AITER_TRITON"
#: JSON file that says which kernel family computes which GEMM (`route.py`).
ROUTE = "GEMMTUNE_ROUTE"
#: JSON file that says which kernel to force.
SWITCH = "GEMMTUNE_SWITCH"

_TRUE = {"1", "true", "yes", "y", "on"}


class Settings:
    """The overlay's settings, from a mapping such as `os.environ`."""

    def __init__(self, environ):
        def said(name):
            return environ.get(name, "").strip().lower() in _TRUE

        self.dump_shapes = said(DUMP_SHAPES)
        self.log_dispatch = said(LOG_DISPATCH)
        self.record_dir = environ.get(RECORD_DIR) or None
        self.triton_tables = environ.get(TRITON_TABLES) or None
        self.moe_tables = environ.get(MOE_TABLES) or None
        self.aiter_triton = environ.get(AITER_TRITON) or None
        self.route = environ.get(ROUTE) or None
        self.switch = environ.get(SWITCH) or None

    @property
    def anything(self):
        """Whether any hook is wanted. A record folder alone asks for nothing."""
        tables = self.triton_tables or self.moe_tables or self.aiter_triton
        return bool(self.dump_shapes or self.log_dispatch or tables or self.route or self.switch)


def from_environment():
    """The settings of this process."""
    return Settings(os.environ)
