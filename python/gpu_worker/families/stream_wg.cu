// Block-FP8 GEMM for up to 32 rows of A on Hopper: C = (A * As) (B * Bs)^T, as stream.cu does it for fewer.
//
// One warpgroup multiplies 64 rows of B by all rows of A with Hopper's own FP8 matrix instruction (wgmma, transposed: the
// rows of B are the 64 of the instruction), a scale block of 128 columns at a time. stream.cu turns FP8 into half precision
// first, which Hopper's older matrix instruction needs, and above eight rows of A that takes longer than reading B.
//
// Both operands go through shared memory, a ring of DEPTH scale blocks for each warpgroup, in the 128-byte swizzle that
// wgmma reads. Warpgroups never wait for one another while they stream. The GROUPS_K warpgroups of a block and the CLUSTER
// blocks of a cluster share K; their sums are added up in a fixed order, through shared memory. One launch, no workspace,
// nothing to reset.
//
// Settings (macros): TOKEN_TILES (eights of rows of A), GROUPS_K, GROUPS_N (warpgroups that share a K, and that share a row
// of A), CLUSTER, DEPTH (at least 2), MIN_BLOCKS, BUFFERS, EARLY: as in stream.cu.

#define THREADS (128 * GROUPS_K * GROUPS_N)
#define GROUP_ROWS 64
#define BLOCK_ROWS (GROUP_ROWS * GROUPS_N)
#define TOKENS (8 * TOKEN_TILES)
#define PITCH (GROUP_ROWS + 4)  // + 4: the four lanes that hold one row of the tile write to banks 8 apart
#define TILE_BYTES ((GROUP_ROWS + TOKENS) * 128)
#define SCALES_AT (DEPTH * TILE_BYTES)
#define GROUP_BYTES ((SCALES_AT + DEPTH * (TOKENS + 1) * 4 + 1023) / 1024 * 1024)

typedef unsigned int u32;
typedef unsigned long long u64;

__device__ __forceinline__ void copy16(u32 to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0));
}
__device__ __forceinline__ void copy4(u32 to, const void* from, bool inside) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(inside ? 4 : 0));
}
__device__ __forceinline__ float read4(u32 at) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(at));
  return v;
}

// Where chunk `chunk` (16 bytes) of row `row` lies in a tile of 128-byte rows with the 128-byte swizzle.
__device__ __forceinline__ u32 swizzled(int row, int chunk) { return row * 128 + ((chunk ^ (row & 7)) << 4); }

// A tile's descriptor for wgmma: 128-byte swizzle, eight rows every 1024 bytes; columns follow one another.
__device__ __forceinline__ u64 described(u32 at) { return (u64)((at & 0x3FFFF) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62; }

#define FOUR(a, b, c, d) "%" #a ",%" #b ",%" #c ",%" #d
#define OUT(u) "+f"(c[u][0]), "+f"(c[u][1]), "+f"(c[u][2]), "+f"(c[u][3])
#define REGS1 FOUR(0, 1, 2, 3)
#define REGS2 REGS1 "," FOUR(4, 5, 6, 7)
#define REGS3 REGS2 "," FOUR(8, 9, 10, 11)
#define REGS4 REGS3 "," FOUR(12, 13, 14, 15)
#define WGMMA(n, regs, a, b, more, ...)                                                                                  \
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #more ", 0; wgmma.mma_async.sync.aligned.m64n" #n                      \
               "k32.f32.e4m3.e4m3 {" regs "}, %" #a ", %" #b ", p, 1, 1; }"                                              \
               : __VA_ARGS__                                                                                             \
               : "l"(rows), "l"(tokens), "r"(add))

// c (+)= 32 columns of 64 rows of B times the same of A.
__device__ __forceinline__ void multiply(float (&c)[TOKEN_TILES][4], u64 rows, u64 tokens, int add) {
#if TOKEN_TILES == 1
  WGMMA(8, REGS1, 4, 5, 6, OUT(0));
#elif TOKEN_TILES == 2
  WGMMA(16, REGS2, 8, 9, 10, OUT(0), OUT(1));
#elif TOKEN_TILES == 3
  WGMMA(24, REGS3, 12, 13, 14, OUT(0), OUT(1), OUT(2));
#elif TOKEN_TILES == 4
  WGMMA(32, REGS4, 16, 17, 18, OUT(0), OUT(1), OUT(2), OUT(3));
#endif
}

#if CLUSTER > 1
// A barrier of the cluster, after which each block sees what the others wrote to their shared memory.
__device__ __forceinline__ void meet() {
  asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// A number in the shared memory of block `rank` of the cluster, at the place that is `at` in one's own.
__device__ __forceinline__ float read_of(u32 at, int rank) {
  float v;
  asm volatile("{ .reg .b32 there; mapa.shared::cluster.u32 there, %1, %2; ld.shared::cluster.f32 %0, [there]; }"
               : "=f"(v)
               : "r"(at), "r"(rank));
  return v;
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
block_fp8_stream_wg(const unsigned char* __restrict__ A, const unsigned char* __restrict__ B,
                    unsigned short* __restrict__ C, const float* __restrict__ As, const float* __restrict__ Bs, int M, int N,
                    int K, int as_row, int as_block, int tiles) {
  extern __shared__ __align__(1024) unsigned char shared[];  // a ring per warpgroup, then sums[BUFFERS][GROUPS_N][GROUPS_K][TOKENS][PITCH]
  const int group = threadIdx.x >> 7, id = threadIdx.x & 127, lane = threadIdx.x & 31;
  const int g = lane >> 2, t = lane & 3;
  const int group_k = group % GROUPS_K, group_n = group / GROUPS_K;
  const u32 ring = (u32)__cvta_generic_to_shared(shared) + group * GROUP_BYTES;
  float* const sums = reinterpret_cast<float*>(shared + GROUPS_K * GROUPS_N * GROUP_BYTES);
  const int blocks_k = K >> 7;
  const int steps = (blocks_k + GROUPS_K * CLUSTER - 1) / (GROUPS_K * CLUSTER);  // per tile, the same for all groups
  const int rank = blockIdx.x % CLUSTER, first_tile = blockIdx.x / CLUSTER, stride = gridDim.x / CLUSTER;
  const int first_k = rank * GROUPS_K + group_k;

  // Where the next load is: a tile and a scale block of it. B runs ahead of A only before the first multiplication.
  struct Cursor {
    int tile, block_k;
  };
  auto advance = [&](Cursor& at) {
    at.block_k += GROUPS_K * CLUSTER;
    if (at.block_k >= steps * GROUPS_K * CLUSTER) at.block_k = first_k, at.tile += stride;
  };
  auto load_b = [&](int stage, Cursor& at) {
    const bool inside = at.tile < tiles && at.block_k < blocks_k;
    const int row0 = min(at.tile * BLOCK_ROWS + group_n * GROUP_ROWS, N - 1);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = 16 * i + (id >> 3), chunk = id & 7;
      copy16(ring + stage * TILE_BYTES + swizzled(row, chunk),
             B + (size_t)min(row0 + row, N - 1) * K + at.block_k * 128 + chunk * 16, inside);
    }
    if (id == 127)
      copy4(ring + SCALES_AT + (stage * (TOKENS + 1) + TOKENS) * 4, Bs + (row0 >> 7) * blocks_k + at.block_k, inside);
    advance(at);
  };
  auto load_a = [&](int stage, Cursor& at) {
    const bool inside = at.tile < tiles && at.block_k < blocks_k;
#pragma unroll
    for (int c = 0; c < TOKENS * 8; c += 128) {
      const int row = (c + id) >> 3, chunk = id & 7;
      if (TOKENS * 8 % 128 == 0 || row < TOKENS)
        copy16(ring + stage * TILE_BYTES + GROUP_ROWS * 128 + swizzled(row, chunk),
               A + (size_t)row * K + at.block_k * 128 + chunk * 16, inside && row < M);
    }
    if (id < TOKENS)
      copy4(ring + SCALES_AT + (stage * (TOKENS + 1) + id) * 4, As + id * as_row + at.block_k * as_block, inside && id < M);
    advance(at);
  };

  Cursor next_b = {first_tile, first_k}, next_a = next_b;
#pragma unroll
  for (int d = 0; d < DEPTH - 1; ++d) load_b(d, next_b);
#if EARLY
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
#pragma unroll
  for (int d = 0; d < DEPTH - 1; ++d) {
    load_a(d, next_a);
    asm volatile("cp.async.commit_group;");
  }

  float sum[TOKEN_TILES][4] = {};
  int in_tile = 0, tile = first_tile, buffer = 0;
  for (int stage = 0, free = DEPTH - 1; tile < tiles; free = stage, stage = stage + 1 == DEPTH ? 0 : stage + 1) {
    asm volatile("cp.async.wait_group %0;" ::"n"(DEPTH - 2) : "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    // After it this stage is there, whichever thread copied it, and everybody is done with the one in front.
    asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
    load_b(free, next_b);
    load_a(free, next_a);
    asm volatile("cp.async.commit_group;");

    float part[TOKEN_TILES][4];
    const u64 rows = described(ring + stage * TILE_BYTES), tokens = described(ring + stage * TILE_BYTES + GROUP_ROWS * 128);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int q = 0; q < 4; ++q) multiply(part, rows + 2 * q, tokens + 2 * q, q);
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    float scale[TOKEN_TILES][2];
    const u32 scales = ring + SCALES_AT + stage * (TOKENS + 1) * 4;
    const float b = read4(scales + TOKENS * 4);
#pragma unroll
    for (int u = 0; u < TOKEN_TILES; ++u)
#pragma unroll
      for (int c = 0; c < 2; ++c) scale[u][c] = read4(scales + (8 * u + 2 * t + c) * 4) * b;
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
    for (int u = 0; u < TOKEN_TILES; ++u)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        asm volatile("" : "+f"(part[u][i])::"memory");  // read after the wait, not before
        sum[u][i] += part[u][i] * scale[u][i & 1];
      }
    if (++in_tile < steps) continue;

    float* mine = sums + (size_t)((buffer * GROUPS_N + group_n) * GROUPS_K + group_k) * TOKENS * PITCH;
#pragma unroll
    for (int u = 0; u < TOKEN_TILES; ++u)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        mine[(8 * u + 2 * t + (i & 1)) * PITCH + 16 * (id >> 5) + g + 8 * (i >> 1)] = sum[u][i];
        sum[u][i] = 0.f;
      }
    // One barrier a tile is enough (one of each kind): with two buffers this one is written again after the next tile's.
    __syncthreads();
    auto place = [&](int e) {
      const int row = e % BLOCK_ROWS;
      return ((buffer * GROUPS_N + row / GROUP_ROWS) * GROUPS_K * TOKENS + e / BLOCK_ROWS) * PITCH + row % GROUP_ROWS;
    };
    auto write = [&](int e, float value) {
      unsigned short rounded;
      asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded) : "f"(value));
      const int row = tile * BLOCK_ROWS + e % BLOCK_ROWS;
      if (row < N) C[(size_t)(e / BLOCK_ROWS) * N + row] = rounded;
    };
    for (int e = threadIdx.x; e < M * BLOCK_ROWS; e += THREADS) {
      float* from = sums + place(e);
      float value = 0.f;
#pragma unroll
      for (int w = 0; w < GROUPS_K; ++w) value += from[w * TOKENS * PITCH];
#if CLUSTER > 1
      *from = value;
    }
    meet();
    for (int e = rank * THREADS + threadIdx.x; e < M * BLOCK_ROWS; e += THREADS * CLUSTER) {
      const u32 at = (u32)__cvta_generic_to_shared(sums + place(e));
      float value = 0.f;
#pragma unroll
      for (int r = 0; r < CLUSTER; ++r) value += read_of(at, r);
#endif
      write(e, value);
    }
    in_tile = 0, tile += stride, buffer ^= BUFFERS - 1;
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
#if CLUSTER > 1
  // Nobody's shared memory goes while another block may still read it.
  asm volatile("barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.aligned;" ::: "memory");
#endif
}
