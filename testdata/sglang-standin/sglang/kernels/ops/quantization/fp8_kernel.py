import logging
import os
from functools import lru_cache

import torch
from standin import cost

logger = logging.getLogger(__name__)
DEFAULT = {"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 128, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 32, "num_warps": 4, "num_stages": 3}


def get_device_name():
    return cost.DEVICE


def sglang_per_token_group_quant_fp8(x, group_size, column_major_scales=False, scale_tma_aligned=False):
    m, k = x.shape
    aligned = -(-m // 4) * 4 if scale_tma_aligned else m
    strides = (1, aligned) if column_major_scales else None
    return torch.Tensor(m, k), torch.Tensor(m, k // group_size, dtype=torch.float32, strides=strides)


@lru_cache
def get_w8a8_block_fp8_configs(N, K, block_n, block_k):
    name = f"N={N},K={K},device_name={cost.DEVICE.replace(' ', '_')},dtype=fp8_w8a8,block_shape=[{block_n}, {block_k}].json"
    path = os.path.join(os.path.dirname(os.path.realpath(__file__)), "configs", name)
    logger.warning(
        "Using default W8A8 Block FP8 kernel config. Performance might be sub-optimal! Config file not found at %s", path
    )
    return None


def prepare_block_fp8_matmul_inputs(A, B, As, Bs, block_size, output_dtype):
    M = A.numel() // A.shape[-1]
    N, K = B.shape
    return M, N, K, A.new_empty(A.shape[:-1] + (N,), dtype=output_dtype)


def w8a8_block_fp8_matmul_deepgemm(A, B, As, Bs, block_size, output_dtype):
    M, N, K, C = prepare_block_fp8_matmul_inputs(A, B, As, Bs, block_size, output_dtype)
    cost.computed("deepgemm", C, M)
    return C


def w8a8_block_fp8_matmul_triton(A, B, As, Bs, block_size, output_dtype=torch.float16):
    M, N, K, C = prepare_block_fp8_matmul_inputs(A, B, As, Bs, block_size, output_dtype)
    configs = get_w8a8_block_fp8_configs(N, K, block_size[0], block_size[1])
    config = configs[min(configs.keys(), key=lambda x: abs(x - M))] if configs else DEFAULT
    cost.spend(cost.microseconds(config, M, N, K))
    C.content = "right"
    return C
