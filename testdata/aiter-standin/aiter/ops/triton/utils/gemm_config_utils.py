import functools
import json
import os

from aiter.ops.triton.utils._triton import arch_info

CONFIGS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "configs", "gemm")
STANDARD_M_BOUNDS = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


@functools.lru_cache(maxsize=None)
def load_config_json(fpath, required=True):
    if not required and not os.path.exists(fpath):
        return None
    with open(fpath) as file:
        return json.load(file)


def get_gemm_config(config_name, M, N=None, K=None, bounds=None, specialized_filename=None, backend=None, B=None):
    stem = f"{CONFIGS}/{arch_info.get_arch()}-{config_name}"
    own = load_config_json(f"{stem}-N={N}-K={K}.json", required=False)
    rows = own or load_config_json(f"{stem}.json")
    keys = [f"M_LEQ_{bound}" for bound in STANDARD_M_BOUNDS if M <= bound and f"M_LEQ_{bound}" in rows]
    return dict(rows[keys[0] if keys else "any"]), own is not None
