// Block-FP8 GEMM for few rows of A: C = (A * As) (B * Bs)^T, where reading B once from memory is all the time there is.
//
// A is M x K in E4M3 with one float32 scale per row and 128 columns; B is N x K in E4M3 with one scale per 128 x 128
// block; C is M x N in bfloat16. K is a multiple of 128, M is at most 8 * TOKEN_TILES.
//
// One warp multiplies 16 * ROW_TILES rows of B by all rows of A. A product does not depend on the order of k, so every
// lane loads 16 consecutive bytes of B straight into the registers that the matrix instruction reads, and the same 16
// positions of A: no shared memory on the way, no transposition. The WARPS_K warps that share rows of B take every
// WARPS_K-th scale block each; their sums are added up through shared memory in a fixed order. With CLUSTER > 1 the
// blocks of a cluster share K in the same way, and add up through one another's shared memory: wider tiles then keep all
// multiprocessors busy, and A, which every tile reads again, costs less. So there is one launch, no workspace and nothing
// to reset, and the result does not depend on timing.
//
// Blocks are persistent if the grid is smaller than the number of tiles: the first scale blocks of the next tile are
// already on their way while the sums of the last one are added up.
//
// Settings (macros): TOKEN_TILES, ROW_TILES, WARPS_K, WARPS_N, CLUSTER (blocks; more than 1 needs sm_90), DEPTH (scale
// blocks on their way per warp), MIN_BLOCKS (resident blocks per multiprocessor the registers are cut for), BUFFERS (2
// where a block takes several tiles, 1 where it takes one), EARLY (1: launched before the kernel in front has ended, reads
// only the weights until then).

#define THREADS (32 * WARPS_K * WARPS_N)
#define TILE_ROWS (16 * ROW_TILES)
#define BLOCK_ROWS (TILE_ROWS * WARPS_N)
#define TOKENS (8 * TOKEN_TILES)
#define SCALES_B (128 % TILE_ROWS ? ROW_TILES : 1)  // scales of B per warp: tiles of 48 rows cross the blocks of 128
#define PITCH (TILE_ROWS + 4)  // + 4: the four lanes that hold one row of the tile write to banks 8 apart

typedef unsigned int u32;

// Copies 16 bytes (or 4) to shared memory without waiting; zeros where `inside` is false.
__device__ __forceinline__ void copy_weights(u32 to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0));
}
__device__ __forceinline__ void copy_tokens(u32 to, const void* from, bool inside) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0));
}
__device__ __forceinline__ void copy_scale(u32 to, const void* from, bool inside) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(inside ? 4 : 0));
}
__device__ __forceinline__ uint4 read16(u32 at) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at));
  return v;
}
__device__ __forceinline__ float read4(u32 at) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(at));
  return v;
}

// Four E4M3 numbers as two pairs of half precision, which holds each of them exactly.
__device__ __forceinline__ void unpack(u32 four, u32& low, u32& high) {
  asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.rn.f16x2.e4m3x2 %0, l; cvt.rn.f16x2.e4m3x2 %1, h; }"
      : "=r"(low), "=r"(high)
      : "r"(four));
}

__device__ __forceinline__ void multiply(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ u32 word(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

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

// What is on the way to shared memory is private to each thread, so that nobody waits for anybody: SLOTS16 slots of 16
// bytes (weights, then tokens) and SLOTS4 of 4 (the scales of B, then those of A), each a whole row of the block's threads.
#define SLOTS16 (4 * ROW_TILES + 2 * TOKEN_TILES)
#define SLOTS4 (SCALES_B + 2 * TOKEN_TILES)
#define STAGE_BYTES (THREADS * (16 * SLOTS16 + 4 * SLOTS4))

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
block_fp8_stream(const unsigned char* __restrict__ A, const unsigned char* __restrict__ B, unsigned short* __restrict__ C,
                 const float* __restrict__ As, const float* __restrict__ Bs, int M, int N, int K, int as_row, int as_block,
                 int tiles) {
  extern __shared__ __align__(16) unsigned char shared[];  // DEPTH stages, then sums[BUFFERS][WARPS_N][WARPS_K][TOKENS][PITCH]
  float* const sums = reinterpret_cast<float*>(shared + DEPTH * STAGE_BYTES);
  const u32 slots16 = (u32)__cvta_generic_to_shared(shared) + threadIdx.x * 16;
  const u32 slots4 = (u32)__cvta_generic_to_shared(shared) + THREADS * 16 * SLOTS16 + threadIdx.x * 4;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int g = lane >> 2, t = lane & 3;
  const int warp_k = warp % WARPS_K, warp_n = warp / WARPS_K;
  const int blocks_k = K >> 7;
  const int steps = (blocks_k + WARPS_K * CLUSTER - 1) / (WARPS_K * CLUSTER);  // per tile, the same for all warps
  const int rank = blockIdx.x % CLUSTER, first_tile = blockIdx.x / CLUSTER, stride = gridDim.x / CLUSTER;
  const int first_k = rank * WARPS_K + warp_k;

  // Where the next load is: a tile and a scale block of it. B runs ahead of A only before the first multiplication.
  struct Cursor {
    int tile, block_k;
  };
  auto advance = [&](Cursor& at) {
    at.block_k += WARPS_K * CLUSTER;
    if (at.block_k >= steps * WARPS_K * CLUSTER) at.block_k = first_k, at.tile += stride;
  };
  auto load_b = [&](int stage, Cursor& at) {
    const int block_k = at.block_k;
    const bool inside = at.tile < tiles && block_k < blocks_k;
    const int row0 = min(at.tile * BLOCK_ROWS + warp_n * TILE_ROWS, N - 1);
#pragma unroll
    for (int r = 0; r < SCALES_B; ++r)
      copy_scale(slots4 + stage * STAGE_BYTES + r * THREADS * 4, Bs + (min(row0 + 16 * r, N - 1) >> 7) * blocks_k + block_k,
                 inside);
#pragma unroll
    for (int r = 0; r < ROW_TILES; ++r)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = min(row0 + 16 * r + 8 * h + g, N - 1);
        const unsigned char* from = B + (size_t)row * K + block_k * 128 + t * 16;
#pragma unroll
        for (int j = 0; j < 2; ++j)
          copy_weights(slots16 + stage * STAGE_BYTES + (4 * r + 2 * h + j) * THREADS * 16, from + 64 * j, inside);
      }
    advance(at);
  };
  auto load_a = [&](int stage, Cursor& at) {
    const int block_k = at.block_k;
    const bool inside = at.tile < tiles && block_k < blocks_k;
#pragma unroll
    for (int u = 0; u < TOKEN_TILES; ++u) {
      const int token = 8 * u + g;
      const unsigned char* from = A + (size_t)token * K + block_k * 128 + t * 16;
#pragma unroll
      for (int j = 0; j < 2; ++j)
        copy_tokens(slots16 + stage * STAGE_BYTES + (4 * ROW_TILES + 2 * u + j) * THREADS * 16, from + 64 * j,
                    inside && token < M);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int column = 8 * u + 2 * t + c;
        copy_scale(slots4 + stage * STAGE_BYTES + (SCALES_B + 2 * u + c) * THREADS * 4, As + column * as_row + block_k * as_block,
                   inside && column < M);
      }
    }
    advance(at);
  };

  Cursor next_b = {first_tile, first_k}, next_a = next_b;
#pragma unroll
  for (int d = 0; d < DEPTH; ++d) load_b(d, next_b);
#if EARLY
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
#pragma unroll
  for (int d = 0; d < DEPTH; ++d) {
    load_a(d, next_a);
    asm volatile("cp.async.commit_group;");
  }

  float sum[ROW_TILES][TOKEN_TILES][4] = {};
  int in_tile = 0, tile = first_tile, buffer = 0;
  for (int stage = 0; tile < tiles; stage = stage + 1 == DEPTH ? 0 : stage + 1) {
    asm volatile("cp.async.wait_group %0;" ::"n"(DEPTH - 1) : "memory");
    uint4 weights[ROW_TILES][2][2], tokens[TOKEN_TILES][2];
    float scale[SLOTS4];
#pragma unroll
    for (int i = 0; i < 4 * ROW_TILES; ++i)
      weights[i >> 2][(i >> 1) & 1][i & 1] = read16(slots16 + stage * STAGE_BYTES + i * THREADS * 16);
#pragma unroll
    for (int i = 0; i < 2 * TOKEN_TILES; ++i)
      tokens[i >> 1][i & 1] = read16(slots16 + stage * STAGE_BYTES + (4 * ROW_TILES + i) * THREADS * 16);
#pragma unroll
    for (int i = 0; i < SLOTS4; ++i) scale[i] = read4(slots4 + stage * STAGE_BYTES + i * THREADS * 4);
    load_b(stage, next_b);
    load_a(stage, next_a);
    asm volatile("cp.async.commit_group;");

    float part[ROW_TILES][TOKEN_TILES][4] = {};
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        u32 b[TOKEN_TILES][2];
#pragma unroll
        for (int u = 0; u < TOKEN_TILES; ++u) unpack(word(tokens[u][j], q), b[u][0], b[u][1]);
#pragma unroll
        for (int r = 0; r < ROW_TILES; ++r) {
          u32 a0, a1, a2, a3;
          unpack(word(weights[r][0][j], q), a0, a2);
          unpack(word(weights[r][1][j], q), a1, a3);
#pragma unroll
          for (int u = 0; u < TOKEN_TILES; ++u) multiply(part[r][u], a0, a1, a2, a3, b[u][0], b[u][1]);
        }
      }
#pragma unroll
    for (int u = 0; u < TOKEN_TILES; ++u) {
#pragma unroll
      for (int r = 0; r < ROW_TILES; ++r) {
        const float b = scale[r % SCALES_B], even = scale[SCALES_B + 2 * u] * b, odd = scale[SCALES_B + 2 * u + 1] * b;
        sum[r][u][0] += part[r][u][0] * even;
        sum[r][u][1] += part[r][u][1] * odd;
        sum[r][u][2] += part[r][u][2] * even;
        sum[r][u][3] += part[r][u][3] * odd;
      }
    }
    if (++in_tile < steps) continue;

    float* mine = sums + (size_t)((buffer * WARPS_N + warp_n) * WARPS_K + warp_k) * TOKENS * PITCH;
#pragma unroll
    for (int r = 0; r < ROW_TILES; ++r)
#pragma unroll
      for (int u = 0; u < TOKEN_TILES; ++u)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          mine[(8 * u + 2 * t + (i & 1)) * PITCH + 16 * r + g + 8 * (i >> 1)] = sum[r][u][i];
          sum[r][u][i] = 0.f;
        }
    // One barrier a tile is enough (one of each kind): with two buffers this one is written again after the next tile's.
    __syncthreads();
    auto place = [&](int e) {
      const int row = e % BLOCK_ROWS;
      return ((buffer * WARPS_N + row / TILE_ROWS) * WARPS_K * TOKENS + e / BLOCK_ROWS) * PITCH + row % TILE_ROWS;
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
      for (int w = 0; w < WARPS_K; ++w) value += from[w * TOKENS * PITCH];
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
