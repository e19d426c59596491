// Softmax and log-softmax of the rows of a matrix, and their gradients.
//
// Bytes: forward reads x and writes y (2 n), backward reads y and g and writes gx (3 n); a few
// operations a byte: memory-bound once a row is long enough. Each block takes whole rows.
// Subtracting the row's own maximum keeps e^x in range (and only the row's own does).
#include "common.cuh"

// Rows that a block takes through each step together. On a CPU the steps of one row wait for each
// other, those of several overlap; a GPU overlaps blocks.
constexpr int TOGETHER = PER_THREAD(8, 1);

// y = e^(x - max) / sum. Three passes over a row, of which the second and third find it cached.
// 16-bit numbers would be rounded twice: they are not kept in between, but computed again.
__global__ void softmax_forward(const real *x, real *y, int64 rows, int64 n) {
    for (int64 first = blockIdx.x * TOGETHER; first < rows; first += gridDim.x * TOGETHER) {
        int count = rows - first < TOGETHER ? int(rows - first) : TOGETHER;
        const real *a = x + first * n;
        real *out = y + first * n;
        acc scale[TOGETHER], top[TOGETHER];
        constexpr bool kept = sizeof(real) == sizeof(acc);
        for (int r = 0; r < count; r++) {
            acc t = block_max(n, [&](int64 i) { return acc(a[r * n + i]); });
            scale[r] = block_sum(n, [&](int64 i) {
                acc e = exp_below0(acc(a[r * n + i]) - t);
                if (kept) out[r * n + i] = real(e);
                return e;
            });
            top[r] = t;
        }
        for (int r = 0; r < count; r++) {
            acc s = acc(1) / scale[r], t = top[r];
            block_each(n, [&](int64 i) {
                int64 at = r * n + i;
                out[at] = real((kept ? acc(out[at]) : exp_below0(acc(a[at]) - t)) * s);
            });
        }
    }
}

// gx = y (g - sum(g y))
__global__ void softmax_backward(const real *y, const real *g, real *gx, int64 rows, int64 n) {
    for (int64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const real *p = y + row * n, *slope = g + row * n;
        real *out = gx + row * n;
        acc dot = block_sum(n, [&](int64 i) { return acc(p[i]) * acc(slope[i]); });
        block_each(n, [&](int64 i) { out[i] = real(acc(p[i]) * (acc(slope[i]) - dot)); });
    }
}

// y = x - max - log(sum of e^(x - max))
__global__ void log_softmax_forward(const real *x, real *y, int64 rows, int64 n) {
    for (int64 first = blockIdx.x * TOGETHER; first < rows; first += gridDim.x * TOGETHER) {
        int count = rows - first < TOGETHER ? int(rows - first) : TOGETHER;
        const real *a = x + first * n;
        real *out = y + first * n;
        acc top[TOGETHER] = {}, sum[TOGETHER] = {};
        for (int r = 0; r < count; r++) {
            acc t = block_max(n, [&](int64 i) { return acc(a[r * n + i]); });
            sum[r] = block_sum(n, [&](int64 i) { return exp_below0(acc(a[r * n + i]) - t); });
            top[r] = t;
        }
        VECTOR
        for (int r = 0; r < TOGETHER; r++) top[r] += log_(sum[r]);
        for (int r = 0; r < count; r++) {
            acc shift = top[r];
            block_each(n, [&](int64 i) { out[r * n + i] = real(acc(a[r * n + i]) - shift); });
        }
    }
}

// gx = g - e^y sum(g)
__global__ void log_softmax_backward(const real *y, const real *g, real *gx, int64 rows, int64 n) {
    for (int64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const real *p = y + row * n, *slope = g + row * n;
        real *out = gx + row * n;
        acc sum = block_sum(n, [&](int64 i) { return acc(slope[i]); });
        block_each(n, [&](int64 i) { out[i] = real(acc(slope[i]) - exp_below0(acc(p[i])) * sum); });
    }
}
