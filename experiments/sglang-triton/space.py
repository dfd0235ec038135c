"""The search space of SGLang's own tuner for this kernel, and which of its settings are the same program."""

import itertools

KEYS = ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "GROUP_SIZE_M", "num_warps", "num_stages")

DEFAULT = {
    "BLOCK_SIZE_M": 64,
    "BLOCK_SIZE_N": 128,
    "BLOCK_SIZE_K": 128,
    "GROUP_SIZE_M": 32,
    "num_warps": 4,
    "num_stages": 3,
}
"""What SGLang runs when it has no file for the shape."""

SHAPES = ((6144, 4096), (4096, 4096), (24576, 4096), (4096, 12288))
"""(N, K) of Qwen3-8B's four linear layers without tensor parallelism."""

MS = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)

UPSTREAM_MS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 1536, 2048, 3072, 4096)
"""The M values SGLang's tuner measures."""


def full_space():
    """All 1,280 settings of SGLang's tuner on CUDA: 5 x 4 x 2 tiles, 4 groups, 2 warp counts, 4 stage counts."""
    values = ((16, 32, 64, 128, 256), (32, 64, 128, 256), (64, 128), (1, 16, 32, 64), (4, 8), (2, 3, 4, 5))
    return [dict(zip(KEYS, chosen)) for chosen in itertools.product(*values)]


def extended_space():
    """SPLIT_K and SWAP_AB (SGLang 0.5.21, sm_90) over the tiles that can win at small M."""
    values = ((16, 32, 64), (64, 128), (128,), (1,), (4, 8), (3, 4, 5), (1, 2, 4, 8), (False, True))
    keys = KEYS + ("SPLIT_K", "SWAP_AB")
    chosen = [dict(zip(keys, one)) for one in itertools.product(*values)]
    return [one for one in chosen if one["SPLIT_K"] > 1 or one["SWAP_AB"]]


def distinct(space, m):
    """One setting for each distinct program at M = m.

    GROUP_SIZE_M is the height, in tiles, of the bands in which tiles are walked. With no more tiles than that in the
    column there is one band whatever the number, so the order of tiles is the same: of those settings one is measured.
    """
    seen = {}
    for setting in space:
        seen.setdefault(program(setting, m), setting)
    return list(seen.values())


def program(setting, m):
    """What tells the programs of `distinct` apart."""
    tiles = -(-m // setting["BLOCK_SIZE_M"])
    rest = tuple(value for key, value in sorted(setting.items()) if key != "GROUP_SIZE_M")
    return (*rest, min(setting["GROUP_SIZE_M"], tiles))


def shape(m, n, k):
    """A shape as the worker's protocol writes it."""
    return {"op": "w8a8_block_fp8_matmul", "m": m, "n": n, "k": k, "dtype": "torch.float8_e4m3fn"}
