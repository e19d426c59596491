// Conversion between float and `real`, with a factor; and the gradient scaler's division.
//
// Bytes: each number is read once and written once; two operations at most between. Rounding to
// the nearest number is the type's own (native/half.h, on a GPU an instruction).
#include "common.cuh"

// y = x scale
__global__ void from_float(const float *x, real *y, acc scale, int64 n) {
    for_each(n, [=](int64 i) { y[i] = real(acc(x[i]) * scale); });
}

__global__ void to_float(const real *x, float *y, acc scale, int64 n) {
    for_each(n, [=](int64 i) { y[i] = float(acc(x[i]) * scale); });
}

// g *= inverse; found[b] = whether one of the elements [4096 b, 4096 (b + 1)) was Inf or NaN:
// a byte for each of `parts`, so that no two threads write one.
__global__ void unscale(real *g, uint8 *found, acc inverse, int64 parts, int64 n) {
    const int64 ROW = 4096;
    for (int64 part = blockIdx.x; part < parts; part += gridDim.x) {
        real *a = g + part * ROW;
        int64 size = n - part * ROW < ROW ? n - part * ROW : ROW;
        acc bad = block_max(size, [&](int64 i) {
            acc x = acc(a[i]);
            return x - x == acc(0) ? acc(0) : acc(1);
        });
        block_each(size, [&](int64 i) { a[i] = real(acc(a[i]) * inverse); });
        if (threadIdx.x == 0) found[part] = bad > acc(0);
    }
}
