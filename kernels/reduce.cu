// What collectives reduce with: an array that has arrived is taken into one's own, a = a op b.
//
// Bytes: two numbers read and one written for each operation: memory-bound. 16-bit numbers are
// added as floats and rounded once; over p ranks that is p - 1 roundings, in the order of the
// algorithm.
#include "common.cuh"

__global__ void reduce_sum(real *a, const real *b, int64 n) {
    for_each(n, [=](int64 i) { a[i] = real(acc(a[i]) + acc(b[i])); });
}

__global__ void reduce_prod(real *a, const real *b, int64 n) {
    for_each(n, [=](int64 i) { a[i] = real(acc(a[i]) * acc(b[i])); });
}

// The larger; NaN if one of them is NaN, as NumPy's maximum.
__global__ void reduce_max(real *a, const real *b, int64 n) {
    for_each(n, [=](int64 i) {
        acc x = acc(a[i]), y = acc(b[i]);
        a[i] = real(x > y || x != x ? x : y);
    });
}

__global__ void reduce_min(real *a, const real *b, int64 n) {
    for_each(n, [=](int64 i) {
        acc x = acc(a[i]), y = acc(b[i]);
        a[i] = real(x < y || x != x ? x : y);
    });
}
