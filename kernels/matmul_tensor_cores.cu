// executions: gpu
//
// The last step of matmul.cu: C = A B by tensor cores, units that multiply two small matrices in
// one instruction of a warp. A is (m, k), B is (k, n), C is (m, n), row by row in memory.
//
// Flops: 2 m n k, at 8 times (TF32) or 16 times (16 bits) the rate of ordinary instructions on an
// A100. Bytes per flop are those of a tile of 64 x 64 results, as in matmul_registers.
//
// Numbers are rounded as tensor cores take them, products are exact and sums are float:
//     float       to TF32, which has float's range and 10 bits after the point: off by 5e-4
//     16 bits     as they are
//     double      as they are, with sums in double
// A tensor core's order of summation is its own: C is near that of the other kernels, not equal.
//
// 128 threads a block, in one dimension; any grid of two dimensions (columns, rows).
#include "common.cuh"
#include <mma.h>

using namespace nvcuda;

// For numbers of so many bytes: what an instruction takes, SIZE x SIZE results of DEPTH steps.
template <class N, int BYTES> struct Kind;
template <class N> struct Kind<N, 2> {
    typedef N type;
    static constexpr int SIZE = 16, DEPTH = 16;
    static __device__ __forceinline__ N rounded(N x) { return x; }
};
template <class N> struct Kind<N, 4> {
    typedef wmma::precision::tf32 type;
    static constexpr int SIZE = 16, DEPTH = 8;
    static __device__ __forceinline__ N rounded(N x) { return wmma::__float_to_tf32(x); }
};
template <class N> struct Kind<N, 8> {
    typedef N type;
    static constexpr int SIZE = 8, DEPTH = 4;
    static __device__ __forceinline__ N rounded(N x) { return x; }
};
typedef Kind<real, sizeof(real)> Core;
constexpr int SIZE = Core::SIZE, DEPTH = Core::DEPTH;

// A block of 4 warps has TILE x TILE results, each warp a quarter: PARTS x PARTS fragments, which
// are spread over the registers of its threads. STEPS of k at a time are in shared memory.
constexpr int TILE = 64, HALF = TILE / 2, PARTS = HALF / SIZE, STEPS = 16, PAD = 8;

// tile = the part of `x` (rows, columns) from (top, left) on, and zeros outside of it.
template <int TILE_ROWS, int TILE_COLUMNS>
static __device__ __forceinline__ void fill(real (&tile)[TILE_ROWS][TILE_COLUMNS + PAD],
                                            const real *x, int64 top, int64 left, int64 rows,
                                            int64 columns) {
    for (int at = threadIdx.x; at < TILE_ROWS * TILE_COLUMNS; at += blockDim.x) {
        int i = at / TILE_COLUMNS, j = at % TILE_COLUMNS;
        tile[i][j] = top + i < rows && left + j < columns
            ? Core::rounded(x[(top + i) * columns + left + j]) : real(acc(0));
    }
}

__global__ void matmul_tensor_cores(const real *a, const real *b, real *c, int64 m, int64 n,
                                    int64 k) {
    // Rows are longer by PAD: fewer of them begin in the same bank. Fragments begin at multiples of
    // 32 bytes, as their loads demand.
    __shared__ __align__(32) real tile_a[TILE][STEPS + PAD], tile_b[STEPS][TILE + PAD];
    __shared__ __align__(32) acc out[4][SIZE][SIZE];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int below = warp / 2 * HALF, right = warp % 2 * HALF;  // the warp's quarter
    for (int64 top = blockIdx.y * TILE; top < m; top += gridDim.y * TILE)
        for (int64 left = blockIdx.x * TILE; left < n; left += gridDim.x * TILE) {
            wmma::fragment<wmma::accumulator, SIZE, SIZE, DEPTH, acc> sum[PARTS][PARTS];
            for (int i = 0; i < PARTS; i++)
                for (int j = 0; j < PARTS; j++) wmma::fill_fragment(sum[i][j], acc(0));
            for (int64 step = 0; step < k; step += STEPS) {
                fill<TILE, STEPS>(tile_a, a, top, step, m, k);
                fill<STEPS, TILE>(tile_b, b, step, left, k, n);
                __syncthreads();
                for (int s = 0; s < STEPS; s += DEPTH) {
                    wmma::fragment<wmma::matrix_a, SIZE, SIZE, DEPTH, Core::type,
                                   wmma::row_major> from_a[PARTS];
                    wmma::fragment<wmma::matrix_b, SIZE, SIZE, DEPTH, Core::type,
                                   wmma::row_major> from_b[PARTS];
                    for (int i = 0; i < PARTS; i++) {
                        wmma::load_matrix_sync(from_a[i], &tile_a[below + i * SIZE][s],
                                               STEPS + PAD);
                        wmma::load_matrix_sync(from_b[i], &tile_b[s][right + i * SIZE],
                                               TILE + PAD);
                    }
                    for (int i = 0; i < PARTS; i++)  // each fragment is used PARTS times
                        for (int j = 0; j < PARTS; j++)
                            wmma::mma_sync(sum[i][j], from_a[i], from_b[j], sum[i][j]);
                }
                __syncthreads();
            }
            for (int i = 0; i < PARTS; i++)
                for (int j = 0; j < PARTS; j++) {
                    // Which thread holds which result is not said: by way of shared memory.
                    wmma::store_matrix_sync(&out[warp][0][0], sum[i][j], SIZE,
                                            wmma::mem_row_major);
                    __syncwarp();
                    for (int at = lane; at < SIZE * SIZE; at += 32) {
                        int64 row = top + below + i * SIZE + at / SIZE;
                        int64 col = left + right + j * SIZE + at % SIZE;
                        if (row < m && col < n)
                            c[row * n + col] = real(out[warp][at / SIZE][at % SIZE]);
                    }
                    __syncwarp();
                }
        }
}
