// Layer normalisation and root-mean-square normalisation of the rows of a matrix (rows, n), and
// their gradients.
//
// Bytes: forward reads x and writes y (2 n a row), backward reads x and g and writes gx (3 n): a
// few operations a byte, so memory-bound. Of a row only its mean and 1 / deviation are kept; the
// backward makes the normalised row again, which is cheaper than reading it.
#include "lanes.cuh"

constexpr int ROWS = 32;  // whose gradients of weight and bias one block adds up

// y = (x - mean) scale w + b with scale = 1 / sqrt(variance + eps). The second and the third pass
// over a row find it cached.
__global__ void layer_norm_forward(const real *x, const real *w, const real *b, real *y,
                                   acc *mean, acc *scale, int64 rows, int64 n, acc eps) {
    for (int64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const real *a = x + row * n;
        real *out = y + row * n;
        acc m = block_sum(n, [&](int64 i) { return acc(a[i]); }) / acc(n);
        acc squares = block_sum(n, [&](int64 i) {
            acc d = acc(a[i]) - m;
            return d * d;
        });
        acc s = acc(1) / sqrt_(squares / acc(n) + eps);
        block_each(n, [&](int64 i) {
            out[i] = real(fma_((acc(a[i]) - m) * s, acc(w[i]), acc(b[i])));
        });
        if (threadIdx.x == 0) {
            mean[row] = m;
            scale[row] = s;
        }
    }
}

// gx = scale (d - mean(d) - normal mean(d normal)) with d = g w and normal = (x - mean) scale.
// partial (parts, 2, n): of each ROWS rows the sums of g normal and of g, the gradients of w and b.
__global__ void layer_norm_backward(const real *x, const real *g, const real *w, const acc *mean,
                                    const acc *scale, real *gx, acc *partial, int64 rows, int64 n,
                                    int64 parts) {
    for (int64 part = blockIdx.x; part < parts; part += gridDim.x) {
        acc *gw = partial + part * 2 * n, *gb = gw + n;
        int64 end = part * ROWS + ROWS < rows ? part * ROWS + ROWS : rows;
        block_each(n, [&](int64 i) { gw[i] = gb[i] = acc(0); });
        for (int64 row = part * ROWS; row < end; row++) {
            const real *a = x + row * n, *slope = g + row * n;
            real *out = gx + row * n;
            acc m = mean[row], s = scale[row];
            Sums sums = block_sums(n, [&](int64 i, acc &d, acc &along) {
                acc weighted = acc(slope[i]) * acc(w[i]);
                d += weighted;
                along = fma_(weighted, acc(a[i]) - m, along);
            });
            acc level = sums.a / acc(n), tilt = sums.b * s / acc(n);
            block_each(n, [&](int64 i) {
                acc normal = (acc(a[i]) - m) * s, d = acc(slope[i]);
                gw[i] = fma_(d, normal, gw[i]);
                gb[i] += d;
                out[i] = real(s * fma_(-normal, tilt, fma_(d, acc(w[i]), -level)));
            });
        }
    }
}

// y = x scale w with scale = 1 / sqrt(mean(x^2) + eps).
__global__ void rms_norm_forward(const real *x, const real *w, real *y, acc *scale, int64 rows,
                                 int64 n, acc eps) {
    for (int64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const real *a = x + row * n;
        real *out = y + row * n;
        acc squares = block_sum(n, [&](int64 i) { return acc(a[i]) * acc(a[i]); });
        acc s = acc(1) / sqrt_(squares / acc(n) + eps);
        block_each(n, [&](int64 i) {
            out[i] = real(acc(a[i]) * s * acc(w[i]));
        });
        if (threadIdx.x == 0) scale[row] = s;
    }
}

// gx = scale (d - normal mean(d normal)) with d = g w and normal = x scale.
// partial (parts, n): of each ROWS rows the sums of g normal, the gradient of w.
__global__ void rms_norm_backward(const real *x, const real *g, const real *w, const acc *scale,
                                  real *gx, acc *partial, int64 rows, int64 n, int64 parts) {
    for (int64 part = blockIdx.x; part < parts; part += gridDim.x) {
        acc *gw = partial + part * n;
        int64 end = part * ROWS + ROWS < rows ? part * ROWS + ROWS : rows;
        block_each(n, [&](int64 i) { gw[i] = acc(0); });
        for (int64 row = part * ROWS; row < end; row++) {
            const real *a = x + row * n, *slope = g + row * n;
            real *out = gx + row * n;
            acc s = scale[row];
            acc along = block_sum(n, [&](int64 i) {
                return acc(slope[i]) * acc(w[i]) * acc(a[i]);
            });
            acc tilt = along * s / acc(n);
            block_each(n, [&](int64 i) {
                acc normal = acc(a[i]) * s, d = acc(slope[i]);
                gw[i] = fma_(d, normal, gw[i]);
                out[i] = real(s * fma_(-normal, tilt, d * acc(w[i])));
            });
        }
    }
}

// The sums over columns: partial (parts, n) -> total (n). Always in the order of the parts: the
// result does not depend on who was first.
__global__ void add_parts(const acc *partial, acc *total, int64 parts, int64 n) {
    all_lanes(n, [&](int64 start, auto each) {
        acc sum[LANES] = {};
        for (int64 part = 0; part < parts; part++)
            each([&](int j) { sum[j] += partial[part * n + start + j]; });
        each([&](int j) { total[start + j] = sum[j]; });
    });
}
