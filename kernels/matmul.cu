// executions: gpu, compiled, emulated
//
// A matrix product in steps: C = A B, where A is (m, k), B is (k, n) and C (m, n), row by row in
// memory. An example: operations leave their products to the array library's BLAS.
//
// Flops: 2 m n k. Bytes that have to move, in float32: 4 (m k + k n + m n); for m = n = k = 1024
// that is 2,147 Mflop and 12.6 MB, 170 flops a byte. A GPU computes 10 to 80 flops in the time of
// a byte, so a product need not wait for memory, unless it fetches the same numbers again and
// again: each number of A is needed n times. Who holds it in the meantime is what the steps change.
//
//                        bytes from memory     loads from shared memory
//                            per flop              per multiplication
//     matmul_naive              4                        -
//     matmul_shared          4 / 16 = 0.25               2
//     matmul_registers       4 / 64 = 0.0625            1/2
//
// Launched with a grid of two dimensions (columns, rows) and, but for the first, SIDE x SIDE
// threads a block: any grid will do. A result is summed up in the order of k by fused
// multiplications and additions, so all three give the same bits.
//
// On a CPU a block is one thread and shared memory is its first-level cache. The second kernel's
// tiles are then single numbers, which gains nothing; the third one's are what a BLAS makes:
// panels that stay in the cache, and results that stay in vector registers: it is
// 30 times as fast there.
#include "tiles.cuh"

// 1. A thread a result. Neighbouring threads read neighbouring numbers of B, and all the same one
// of A; but each multiplication fetches its two numbers, 8 bytes for 2 flops.
__global__ void matmul_naive(const real *a, const real *b, real *c, int64 m, int64 n, int64 k) {
    int64 down = gridDim.y * blockDim.y, across = gridDim.x * blockDim.x;
    for (int64 row = blockIdx.y * blockDim.y + threadIdx.y; row < m; row += down)
        for (int64 col = blockIdx.x * blockDim.x + threadIdx.x; col < n; col += across) {
            acc sum = 0;
            for (int64 i = 0; i < k; i++)
                sum = fma_(acc(a[row * k + i]), acc(b[i * n + col]), sum);
            c[row * n + col] = real(sum);
        }
}

constexpr int SIDE = PER_THREAD(1, 16);

// 2. Tiles in shared memory. The threads of a block need the same SIDE rows of A and columns of B:
// each fetches one number of both, and all use them. A number that was fetched serves SIDE results.
// Where a tile hangs over the matrix it is filled with zeros, which add nothing.
__global__ void matmul_shared(const real *a, const real *b, real *c, int64 m, int64 n, int64 k) {
    __shared__ acc tile_a[SIDE][SIDE], tile_b[SIDE][SIDE];
    int x = threadIdx.x, y = threadIdx.y;
    for (int64 top = blockIdx.y * SIDE; top < m; top += gridDim.y * SIDE)
        for (int64 left = blockIdx.x * SIDE; left < n; left += gridDim.x * SIDE) {
            int64 row = top + y, col = left + x;
            acc sum = 0;
            for (int64 step = 0; step < k; step += SIDE) {
                tile_a[y][x] = row < m && step + x < k ? acc(a[row * k + step + x]) : acc(0);
                tile_b[y][x] = step + y < k && col < n ? acc(b[(step + y) * n + col]) : acc(0);
                __syncthreads();  // both tiles are whole
                for (int i = 0; i < SIDE; i++) sum = fma_(tile_a[y][i], tile_b[i][x], sum);
                __syncthreads();  // and are no longer read
            }
            if (row < m && col < n) c[row * n + col] = real(sum);
        }
}

// Results of a thread, those of its block, and how many steps a tile has.
constexpr int DOWN = ROWS, ACROSS = PER_THREAD(2 * LANES, 4);
constexpr int TALL = SIDE * DOWN, WIDE = SIDE * ACROSS, DEPTH = PER_THREAD(128, 16);

// tile = the part of `x` (rows, columns) from (top, left) on, and zeros outside of it.
template <int TILE_ROWS, int TILE_COLUMNS, int STRIDE>
static __device__ __forceinline__ void fill(acc (&tile)[TILE_ROWS][STRIDE], const real *x,
                                            int64 top, int64 left, int64 rows, int64 columns) {
    for (int i = threadIdx.y; i < TILE_ROWS; i += SIDE) {
        VECTOR
        for (int j = threadIdx.x; j < TILE_COLUMNS; j += SIDE)
            tile[i][j] = top + i < rows && left + j < columns
                ? acc(x[(top + i) * columns + left + j]) : acc(0);
    }
}

// 3. Blocks in registers. A thread that has one result loads two numbers from shared memory for
// each multiplication, and that is what it waits for. With DOWN x ACROSS results it loads
// DOWN + ACROSS numbers for DOWN * ACROSS multiplications, and the tiles grow to 64 x 64 results.
//
// The results of a thread are SIDE apart, so that neighbouring threads read neighbouring numbers of
// tile_b; rows of tile_a are one number longer, so that two of them lie in different banks.
__global__ void matmul_registers(const real *a, const real *b, real *c, int64 m, int64 n,
                                 int64 k) {
    __shared__ acc tile_a[TALL][DEPTH + 1], tile_b[DEPTH][WIDE];
    int x = threadIdx.x, y = threadIdx.y;
    for (int64 top = blockIdx.y * TALL; top < m; top += gridDim.y * TALL)
        for (int64 left = blockIdx.x * WIDE; left < n; left += gridDim.x * WIDE) {
            acc sum[DOWN][ACROSS] = {};
            for (int64 step = 0; step < k; step += DEPTH) {
                fill<TALL, DEPTH>(tile_a, a, top, step, m, k);
                fill<DEPTH, WIDE>(tile_b, b, step, left, k, n);
                __syncthreads();
                for (int s = 0; s < DEPTH; s++) {
                    acc from_b[ACROSS];
                    VECTOR
                    for (int j = 0; j < ACROSS; j++) from_b[j] = tile_b[s][x + j * SIDE];
                    UNROLL
                    for (int i = 0; i < DOWN; i++) {
                        acc from_a = tile_a[y + i * SIDE][s];
                        VECTOR
                        for (int j = 0; j < ACROSS; j++)
                            sum[i][j] = fma_(from_a, from_b[j], sum[i][j]);
                    }
                }
                __syncthreads();
            }
            for (int i = 0; i < DOWN; i++)
                for (int j = 0; j < ACROSS; j++) {
                    int64 row = top + y + i * SIDE, col = left + x + j * SIDE;
                    if (row < m && col < n) c[row * n + col] = real(sum[i][j]);
                }
        }
}
