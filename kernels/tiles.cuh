// Products of small matrices that lie in shared memory (on a CPU: in its first-level cache).
//
// All serve one inner loop, `micro`: a block of results stays in registers, so that each number
// that is loaded is used many times. On a CPU a thread takes a block of ROWS x 2 LANES results,
// where LANES numbers are one vector register; on a GPU a block of 4 x 2. A result is summed up
// in the order of the steps, by fused multiplications and additions: the same bits everywhere.
#pragma once
#include "common.cuh"

#if defined(MINIPAR_HOST) && !defined(MINIPAR_EMULATED)
#ifdef __AVX512F__  // 32 registers of 64 bytes: 16 for results
constexpr int LANES = 64 / sizeof(acc), ROWS = 8;
#elif defined(__AVX__)  // 16 registers of 32 bytes: 8 for results
constexpr int LANES = 32 / sizeof(acc), ROWS = 4;
#else
constexpr int LANES = 16 / sizeof(acc), ROWS = 4;
#endif
#else
constexpr int LANES = 1, ROWS = 4;
#endif

// Rows of numbers in memory, `stride` numbers apart; the numbers of a row are neighbours.
template <class N> struct Matrix {
    N *data;
    int64 stride;
    __device__ __forceinline__ N *row(int64 i) const { return data + i * stride; }
};

static __device__ __forceinline__ int64 least(int64 a, int64 b) { return a < b ? a : b; }

// put(i, j, sum over steps of a(i, step) b(step, j)) for ROWS x COLUMNS results.
template <int COLUMNS, class Put>
static __device__ __forceinline__ void micro(int steps, const acc *a, int a_row, int a_step,
                                             const acc *b, int b_step, Put put) {
    acc sum[ROWS][COLUMNS];
    for (int i = 0; i < ROWS; i++) {
        VECTOR
        for (int j = 0; j < COLUMNS; j++) sum[i][j] = 0;
    }
    for (int step = 0; step < steps; step++, a += a_step, b += b_step)
        for (int i = 0; i < ROWS; i++) {
            VECTOR
            for (int j = 0; j < COLUMNS; j++) sum[i][j] = fma_(a[i * a_row], b[j], sum[i][j]);
        }
    for (int i = 0; i < ROWS; i++) {
        VECTOR
        for (int j = 0; j < COLUMNS; j++) put(i, j, sum[i][j]);
    }
}

// put(i, j, sum over steps of a(i, step) b(step, j)) for i < rows, j < columns, where a(i, step)
// stands at a[i * a_row + step * a_step] and b(step, j) at b[step * b_step + j]. Whole blocks are
// computed, so `rows` is rounded up to ROWS and `columns` to LANES: what is read for those must be
// memory, and what is put for them has no meaning.
template <class Put>
static __device__ __forceinline__ void product(int rows, int columns, int steps, const acc *a,
                                               int a_row, int a_step, const acc *b, int b_step,
                                               Put put) {
    int down = (rows + ROWS - 1) / ROWS, across = (columns + 2 * LANES - 1) / (2 * LANES);
    for (int block = threadIdx.x; block < down * across; block += blockDim.x) {
        int i0 = block % down * ROWS, j0 = block / down * 2 * LANES;
        auto put_here = [&](int i, int j, acc sum) { put(i0 + i, j0 + j, sum); };
        if (columns - j0 > LANES)
            micro<2 * LANES>(steps, a + i0 * a_row, a_row, a_step, b + j0, b_step, put_here);
        else
            micro<LANES>(steps, a + i0 * a_row, a_row, a_step, b + j0, b_step, put_here);
    }
}

// tile[i * columns + j] = from(first + i, j) * scale
template <class N>
static __device__ __forceinline__ void load(acc *tile, Matrix<N> from, int64 first, int rows,
                                            int columns, acc scale) {
    for (int i = 0; i < rows; i++) {
        const N *a = from.row(first + i);
        for (int j = threadIdx.x; j < columns; j += blockDim.x)
            tile[i * columns + j] = acc(a[j]) * scale;
    }
}

// Transposed: tile[j * stride + i] = from(first + i, j) * scale
template <class N>
static __device__ __forceinline__ void load_across(acc *tile, int stride, Matrix<N> from,
                                                   int64 first, int rows, int columns, acc scale) {
    for (int i = 0; i < rows; i++) {
        const N *a = from.row(first + i);
        for (int j = threadIdx.x; j < columns; j += blockDim.x)
            tile[j * stride + i] = acc(a[j]) * scale;
    }
}

// Transposed: to(first + i, j) = tile[j * stride + i] * scale(i)
template <class Scale>
static __device__ __forceinline__ void store_across(Matrix<real> to, int64 first, int rows,
                                                    int columns, const acc *tile, int stride,
                                                    Scale scale) {
    for (int i = 0; i < rows; i++) {
        real *a = to.row(first + i);
        acc factor = scale(i);
        for (int j = threadIdx.x; j < columns; j += blockDim.x)
            a[j] = real(tile[j * stride + i] * factor);
    }
}
