// Batch normalisation, in steps.
//
// Whatever its layout, the input is a number of matrices (length, columns), one after the other in
// memory. Statistics are taken down the columns of each matrix, then joined over matrices; every
// element is normalised with numbers of its channel. In (N, C, H, W) a matrix is what a sample has
// in a channel, one column of H W; in (H, C, W, N), what convolutions make, a row of a channel in
// all samples, W N; a block runs down it (`run_...`). Rows (N, C) have a column for each channel,
// and are cut into matrices of some rows; a block's threads take columns (`column_...`).
//
// Bytes: the forward reads x twice and writes y, the backward reads x and g twice and writes gx.
#include "lanes.cuh"

// The mean of each matrix, and the sum of squares of the distances to it.
__global__ void run_moments(const real *x, acc *mean, acc *squares, int64 matrices, int64 length) {
    for (int64 m = blockIdx.x; m < matrices; m += gridDim.x) {
        const real *a = x + m * length;
        acc middle = block_sum(length, [&](int64 i) { return acc(a[i]); }) / acc(length);
        acc sum = block_sum(length, [&](int64 i) {
            acc d = acc(a[i]) - middle;
            return d * d;
        });
        if (threadIdx.x == 0) {
            mean[m] = middle;
            squares[m] = sum;
        }
    }
}

// The same for each column. There are `total` rows in all: the last matrix may have fewer.
__global__ void column_moments(const real *x, acc *mean, acc *squares, int64 matrices,
                               int64 length, int64 columns, int64 total) {
    for (int64 m = blockIdx.x; m < matrices; m += gridDim.x) {
        int64 rows = total - m * length < length ? total - m * length : length;
        block_strips(columns, [&](int64 start, auto each) {
            const real *a = x + m * length * columns + start;
            acc middle[STRIP] = {}, sum[STRIP] = {};
            for (int64 row = 0; row < rows; row++)
                each([&](int j) { middle[j] += acc(a[row * columns + j]); });
            each([&](int j) { middle[j] /= acc(rows); });
            for (int64 row = 0; row < rows; row++)
                each([&](int j) {
                    acc d = acc(a[row * columns + j]) - middle[j];
                    sum[j] = fma_(d, d, sum[j]);
                });
            each([&](int j) {
                mean[m * columns + start + j] = middle[j];
                squares[m * columns + start + j] = sum[j];
            });
        });
    }
}

// Mean and variance over several matrices: of mean and squares (parts, columns), over the parts.
// Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance": squares about the
// common mean = squares about one's own mean + n distance^2. A part has `length` elements in a
// column, the last one what is left of `total`.
__global__ void join_moments(const acc *mean, const acc *squares, double *joined,
                             double *variance, int64 parts, int64 columns, int64 length,
                             int64 total) {
    all_lanes(columns, [&](int64 start, auto each) {
        double middle[LANES] = {}, sum[LANES] = {};
        for (int64 part = 0; part < parts; part++) {
            double n = double(part < parts - 1 ? length : total - part * length);
            const acc *own = mean + part * columns + start;
            each([&](int j) { middle[j] += n * double(own[j]); });
        }
        each([&](int j) { middle[j] /= double(total); });
        for (int64 part = 0; part < parts; part++) {
            double n = double(part < parts - 1 ? length : total - part * length);
            const acc *own = mean + part * columns + start;
            const acc *about = squares + part * columns + start;
            each([&](int j) {
                double d = double(own[j]) - middle[j];
                sum[j] += double(about[j]) + n * d * d;
            });
        }
        each([&](int j) {
            joined[start + j] = middle[j];
            variance[start + j] = sum[j] / double(total);
        });
    });
}

// What columns are normalised with, numbers (3, columns): the mean, scale =
// 1 / sqrt(variance + eps), and scale times the weight.
__global__ void channel_numbers(const double *mean, const double *variance, const acc *weight,
                                acc *numbers, int64 columns, double eps) {
    all_lanes(columns, [&](int64 start, auto each) {
        acc *middle = numbers + start, *scale = middle + columns, *slope = scale + columns;
        each([&](int j) {
            acc s = acc(1 / sqrt_(variance[start + j] + eps));
            middle[j] = acc(mean[start + j]);
            scale[j] = s;
            slope[j] = s * weight[start + j];
        });
    });
}

// The running mean and variance become (1 - momentum) running + momentum batch; the variance of
// the batch times `unbiased`.
__global__ void follow(const double *mean, const double *variance, real *running_mean,
                       real *running_variance, int64 columns, double momentum, double unbiased) {
    all_lanes(columns, [&](int64 start, auto each) {
        real *middle = running_mean + start, *spread = running_variance + start;
        each([&](int j) {
            double m = double(acc(middle[j])), v = double(acc(spread[j]));
            middle[j] = real(acc((1 - momentum) * m + momentum * mean[start + j]));
            spread[j] = real(acc((1 - momentum) * v + momentum * (unbiased * variance[start + j])));
        });
    });
}

// y = (x - mean) slope + offset. Matrix m takes mean[m % period], and so on.
__global__ void run_normalise(const real *x, const acc *mean, const acc *slope, const acc *offset,
                              real *y, int64 matrices, int64 length, int64 period) {
    for (int64 m = blockIdx.x; m < matrices; m += gridDim.x) {
        const real *a = x + m * length;
        real *out = y + m * length;
        acc middle = mean[m % period], s = slope[m % period], o = offset[m % period];
        block_each(length, [&](int64 i) { out[i] = real(fma_(acc(a[i]) - middle, s, o)); });
    }
}

// The same of rows: mean (columns,).
__global__ void column_normalise(const real *x, const acc *mean, const acc *slope,
                                 const acc *offset, real *y, int64 matrices, int64 length,
                                 int64 columns, int64 total) {
    for (int64 m = blockIdx.x; m < matrices; m += gridDim.x) {
        int64 end = total < (m + 1) * length ? total : (m + 1) * length;
        block_strips(columns, [&](int64 start, auto each) {
            acc middle[STRIP], s[STRIP], o[STRIP];
            each([&](int j) {
                middle[j] = mean[start + j];
                s[j] = slope[start + j];
                o[j] = offset[start + j];
            });
            for (int64 row = m * length; row < end; row++) {
                const real *a = x + row * columns + start;
                real *out = y + row * columns + start;
                each([&](int j) { out[j] = real(fma_(acc(a[j]) - middle[j], s[j], o[j])); });
            }
        });
    }
}

// The sums of g and of g (x - mean) over each matrix.
__global__ void run_products(const real *g, const real *x, const acc *mean, acc *sums,
                             acc *products, int64 matrices, int64 length, int64 period) {
    for (int64 m = blockIdx.x; m < matrices; m += gridDim.x) {
        const real *slope = g + m * length, *a = x + m * length;
        acc middle = mean[m % period];
        Sums both = block_sums(length, [&](int64 i, acc &sum, acc &product) {
            sum += acc(slope[i]);
            product = fma_(acc(slope[i]), acc(a[i]) - middle, product);
        });
        if (threadIdx.x == 0) {
            sums[m] = both.a;
            products[m] = both.b;
        }
    }
}

__global__ void column_products(const real *g, const real *x, const acc *mean, acc *sums,
                                acc *products, int64 matrices, int64 length, int64 columns,
                                int64 total) {
    for (int64 m = blockIdx.x; m < matrices; m += gridDim.x) {
        int64 end = total < (m + 1) * length ? total : (m + 1) * length;
        block_strips(columns, [&](int64 start, auto each) {
            const acc *middle = mean + start;
            acc sum[STRIP] = {}, product[STRIP] = {};
            for (int64 row = m * length; row < end; row++) {
                const real *slope = g + row * columns + start, *a = x + row * columns + start;
                each([&](int j) {
                    sum[j] += acc(slope[j]);
                    product[j] = fma_(acc(slope[j]), acc(a[j]) - middle[j], product[j]);
                });
            }
            each([&](int j) {
                sums[m * columns + start + j] = sum[j];
                products[m * columns + start + j] = product[j];
            });
        });
    }
}

// (parts, columns) -> their sums over the parts, in order.
__global__ void join_sums(const acc *sums, double *joined, int64 parts, int64 columns) {
    all_lanes(columns, [&](int64 start, auto each) {
        double sum[LANES] = {};
        for (int64 part = 0; part < parts; part++) {
            const acc *own = sums + part * columns + start;
            each([&](int j) { sum[j] += double(own[j]); });
        }
        each([&](int j) { joined[start + j] = sum[j]; });
    });
}

// Of sums (2, parts, columns), those of `products` over parts, and channel_numbers' (3, columns):
// gradients (4, columns) of weight and bias, and `tilt` and `level` of the gradient of n elements
// in each column.
__global__ void channel_gradients(const acc *sums, const acc *numbers, acc *gradients,
                                  int64 parts, int64 columns, double n) {
    all_lanes(columns, [&](int64 start, auto each) {
        const acc *scale = numbers + columns + start, *slope = scale + columns;
        acc *gw = gradients + start, *gb = gw + columns, *tilt = gb + columns;
        acc *level = tilt + columns;
        double sum[LANES] = {}, along[LANES] = {};
        for (int64 part = 0; part < parts; part++) {
            const acc *own = sums + part * columns + start, *other = own + parts * columns;
            each([&](int j) {
                sum[j] += double(own[j]);
                along[j] += double(other[j]);
            });
        }
        each([&](int j) {
            double s = double(scale[j]), share = double(slope[j]) / n;
            gw[j] = acc(along[j] * s);
            gb[j] = acc(sum[j]);
            tilt[j] = acc(along[j] * s * s * share);
            level[j] = acc(sum[j] * share);
        });
    });
}

// gx = slope g - tilt (x - mean) - level
__global__ void run_gradient(const real *g, const real *x, const acc *mean, const acc *slope,
                             const acc *tilt, const acc *level, real *gx, int64 matrices,
                             int64 length, int64 period) {
    for (int64 m = blockIdx.x; m < matrices; m += gridDim.x) {
        const real *up = g + m * length, *a = x + m * length;
        real *out = gx + m * length;
        acc middle = mean[m % period], s = slope[m % period];
        acc t = tilt[m % period], l = level[m % period];
        block_each(length, [&](int64 i) {
            out[i] = real(fma_(acc(up[i]), s, fma_(middle - acc(a[i]), t, -l)));
        });
    }
}

__global__ void column_gradient(const real *g, const real *x, const acc *mean, const acc *slope,
                                const acc *tilt, const acc *level, real *gx, int64 matrices,
                                int64 length, int64 columns, int64 total) {
    for (int64 m = blockIdx.x; m < matrices; m += gridDim.x) {
        int64 end = total < (m + 1) * length ? total : (m + 1) * length;
        block_strips(columns, [&](int64 start, auto each) {
            acc middle[STRIP], s[STRIP], t[STRIP], l[STRIP];
            each([&](int j) {
                middle[j] = mean[start + j];
                s[j] = slope[start + j];
                t[j] = tilt[start + j];
                l[j] = level[start + j];
            });
            for (int64 row = m * length; row < end; row++) {
                const real *up = g + row * columns + start, *a = x + row * columns + start;
                real *out = gx + row * columns + start;
                each([&](int j) {
                    out[j] = real(fma_(acc(up[j]), s[j], fma_(middle[j] - acc(a[j]), t[j], -l[j])));
                });
            }
        });
    }
}
