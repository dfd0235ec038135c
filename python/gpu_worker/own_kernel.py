"""gemmtune's block-FP8 GEMM: C = (A · As) (B · Bs)ᵀ, the interface of SGLang's kernel, for a host without SGLang.

A is M x K in FP8 with one float32 scale per row and `group_k` columns; B is N x K in FP8 with one scale per
`group_n` x `group_k` block; C takes the dtype of its pointer. BLOCK_SIZE_K divides `group_k`, so that one tile
never spans two scales. Everything is accumulated in float32.

SWAP_AB computes the transposed tile, so that the weights fill the long side of the matrix instruction when M is
small. SPLIT_K gives each of SPLIT_K programs a share of K; each writes its own M x N plane of float32 partial
results at C, which `add_partial_results` adds up in a fixed order: the result does not depend on timing.
"""

import triton
import triton.language as tl


@triton.jit
def block_fp8_matmul(
    A,
    B,
    C,
    As,
    Bs,
    M,
    N,
    K,
    group_n,
    group_k,
    stride_am,
    stride_ak,
    stride_bk,
    stride_bn,
    stride_cm,
    stride_cn,
    stride_As_m,
    stride_As_k,
    stride_Bs_k,
    stride_Bs_n,
    BLOCK_SIZE_M: tl.constexpr,
    BLOCK_SIZE_N: tl.constexpr,
    BLOCK_SIZE_K: tl.constexpr,
    GROUP_SIZE_M: tl.constexpr,
    needs_masking: tl.constexpr,
    SWAP_AB: tl.constexpr = False,
    SPLIT_K: tl.constexpr = 1,
):
    # Tiles are walked in bands of GROUP_SIZE_M rows of tiles, so that a band's share of A stays in L2.
    tile = tl.program_id(0)
    part = tl.program_id(1)
    tiles_down = tl.cdiv(M, BLOCK_SIZE_M)
    tiles_across = tl.cdiv(N, BLOCK_SIZE_N)
    band_top = tile // (GROUP_SIZE_M * tiles_across) * GROUP_SIZE_M
    band_height = tl.minimum(tiles_down - band_top, GROUP_SIZE_M)
    in_band = tile % (GROUP_SIZE_M * tiles_across)
    row = (band_top + in_band % band_height) * BLOCK_SIZE_M + tl.arange(0, BLOCK_SIZE_M)
    column = in_band // band_height * BLOCK_SIZE_N + tl.arange(0, BLOCK_SIZE_N)

    # Rows and columns past the end read a valid address instead of being masked in the loop; the store masks them.
    row_in = row % M
    column_in = column % N
    depth = tl.arange(0, BLOCK_SIZE_K)
    steps = tl.cdiv(K, BLOCK_SIZE_K)
    steps_of_part = tl.cdiv(steps, SPLIT_K)
    first = part * steps_of_part
    last = tl.minimum(first + steps_of_part, steps)

    a_tile = A + row_in[:, None] * stride_am + (first * BLOCK_SIZE_K + depth[None, :]) * stride_ak
    b_tile = B + column_in[None, :] * stride_bn + (first * BLOCK_SIZE_K + depth[:, None]) * stride_bk
    a_scales = As + row_in * stride_As_m
    b_scales = Bs + column_in // group_n * stride_Bs_n
    if SWAP_AB:
        total = tl.zeros((BLOCK_SIZE_N, BLOCK_SIZE_M), dtype=tl.float32)
    else:
        total = tl.zeros((BLOCK_SIZE_M, BLOCK_SIZE_N), dtype=tl.float32)
    for step in range(first, last):
        if needs_masking:
            left = K - step * BLOCK_SIZE_K
            a = tl.load(a_tile, mask=depth[None, :] < left, other=0.0)
            b = tl.load(b_tile, mask=depth[:, None] < left, other=0.0)
        else:
            a = tl.load(a_tile)
            b = tl.load(b_tile)
        group = step * BLOCK_SIZE_K // group_k
        a_scale = tl.load(a_scales + group * stride_As_k)
        b_scale = tl.load(b_scales + group * stride_Bs_k)
        if SWAP_AB:
            total += tl.dot(tl.trans(b), tl.trans(a)) * b_scale[:, None] * a_scale[None, :]
        else:
            total += tl.dot(a, b) * a_scale[:, None] * b_scale[None, :]
        a_tile += BLOCK_SIZE_K * stride_ak
        b_tile += BLOCK_SIZE_K * stride_bk

    if SWAP_AB:
        total = tl.trans(total)
    plane = C + part.to(tl.int64) * M * N
    place = plane + row[:, None] * stride_cm + column[None, :] * stride_cn
    tl.store(place, total.to(C.dtype.element_ty), mask=(row[:, None] < M) & (column[None, :] < N))


@triton.jit
def add_partial_results(Parts, Out, ELEMENTS, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < ELEMENTS
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for part in tl.static_range(SPLITS):
        total += tl.load(Parts + part * ELEMENTS + place, mask=inside, other=0.0)
    tl.store(Out + place, total.to(Out.dtype.element_ty), mask=inside)
