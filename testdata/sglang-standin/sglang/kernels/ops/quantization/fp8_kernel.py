import logging
import os
from functools import lru_cache

from standin import cost

logger = logging.getLogger(__name__)
DEFAULT = {"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 128, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 32, "num_warps": 4, "num_stages": 3}


def get_device_name():
    return cost.DEVICE


@lru_cache
def get_w8a8_block_fp8_configs(N, K, block_n, block_k):
    name = f"N={N},K={K},device_name={cost.DEVICE.replace(' ', '_')},dtype=fp8_w8a8,block_shape=[{block_n}, {block_k}].json"
    path = os.path.join(os.path.dirname(os.path.realpath(__file__)), "configs", name)
    logger.warning(
        "Using default W8A8 Block FP8 kernel config. Performance might be sub-optimal! Config file not found at %s", path
    )
    return None


def w8a8_block_fp8_matmul_triton(A, B, As, Bs, block_size, output_dtype=None):
    """Takes as long as `cost` says, and returns the microseconds."""
    m = A.numel() // A.shape[-1]
    table = get_w8a8_block_fp8_configs(*B.shape, *block_size)
    config = table[min(table, key=lambda key: abs(key - m))] if table else DEFAULT
    return cost.microseconds(config, m, *B.shape)
