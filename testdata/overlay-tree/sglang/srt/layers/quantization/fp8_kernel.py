from functools import lru_cache


def get_device_name():
    return "NVIDIA H100 80GB HBM3"


@lru_cache
def get_w8a8_block_fp8_configs(N, K, block_n, block_k):
    return {1: {"num_warps": 1}} if (N, K) == (256, 512) else None


def w8a8_block_fp8_matmul_triton(A, B, As, Bs, block_size, output_dtype=None):
    table = get_w8a8_block_fp8_configs(*B.shape, *block_size)
    m = A.numel() // A.shape[-1]
    return table[min(table, key=lambda key: abs(key - m))] if table else "default"
