// Softmax and log-softmax of the rows of a matrix, and their gradients.
//
// Bytes: forward reads x and writes y (2 n), backward reads y and g and writes gx (3 n); a few
// operations a byte: memory-bound once a row is long enough. Each block takes whole rows.
// Subtracting the row's own maximum keeps e^x in range (and only the row's own does).
#include "common.cuh"

// y = e^(x - max) / sum. Three passes over a row, of which the second and third find it cached.
__global__ void softmax_forward(const real *x, real *y, int64 rows, int64 n) {
    for (int64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const real *a = x + row * n;
        real *out = y + row * n;
        acc top = block_max(n, [&](int64 i) { return acc(a[i]); });
        acc sum = block_sum(n, [&](int64 i) {
            acc e = exp_below0(acc(a[i]) - top);
            out[i] = real(e);
            return e;
        });
        acc scale = acc(1) / sum;
        for (int64 i = threadIdx.x; i < n; i += blockDim.x) out[i] = real(acc(out[i]) * scale);
    }
}

// gx = y (g - sum(g y))
__global__ void softmax_backward(const real *y, const real *g, real *gx, int64 rows, int64 n) {
    for (int64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const real *p = y + row * n, *slope = g + row * n;
        real *out = gx + row * n;
        acc dot = block_sum(n, [&](int64 i) { return acc(p[i]) * acc(slope[i]); });
        for (int64 i = threadIdx.x; i < n; i += blockDim.x)
            out[i] = real(acc(p[i]) * (acc(slope[i]) - dot));
    }
}

// y = x - max - log(sum of e^(x - max))
__global__ void log_softmax_forward(const real *x, real *y, int64 rows, int64 n) {
    for (int64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const real *a = x + row * n;
        real *out = y + row * n;
        acc top = block_max(n, [&](int64 i) { return acc(a[i]); });
        acc shift = top + log_(block_sum(n, [&](int64 i) { return exp_below0(acc(a[i]) - top); }));
        for (int64 i = threadIdx.x; i < n; i += blockDim.x) out[i] = real(acc(a[i]) - shift);
    }
}

// gx = g - e^y sum(g)
__global__ void log_softmax_backward(const real *y, const real *g, real *gx, int64 rows, int64 n) {
    for (int64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const real *p = y + row * n, *slope = g + row * n;
        real *out = gx + row * n;
        acc sum = block_sum(n, [&](int64 i) { return acc(slope[i]); });
        for (int64 i = threadIdx.x; i < n; i += blockDim.x)
            out[i] = real(acc(slope[i]) - exp_(acc(p[i])) * sum);
    }
}
