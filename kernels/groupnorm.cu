// Group normalisation, and its gradient, of images that lie in memory with the samples first or
// last. A group is `members` neighbouring channels of a sample; C = groups members.
//
// Bytes: the forward reads x twice and writes y, the backward reads x and g twice and writes gx. A
// block takes one group after another, so that the second time they come from its cache. Of each
// group its mean and scale = 1 / sqrt(variance + eps) are kept.
#include "lanes.cuh"

// y = (x - mean) scale w + b of x (rows, members, length): (N, C, ...) has N groups rows.
__global__ void group_norm_forward(const real *x, const acc *w, const acc *b, real *y, acc *mean,
                                   acc *scale, int64 rows, int64 groups, int64 members,
                                   int64 length, double eps) {
    int64 size = members * length;
    for (int64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const real *a = x + row * size;
        const acc *weight = w + row % groups * members, *bias = b + row % groups * members;
        acc middle = block_sum(size, [&](int64 i) { return acc(a[i]); }) / acc(size);
        acc squares = block_sum(size, [&](int64 i) {
            acc d = acc(a[i]) - middle;
            return d * d;
        });
        acc s = acc(1 / sqrt_(double(squares) / double(size) + eps));
        for (int64 c = 0; c < members; c++) {
            const real *own = a + c * length;
            real *out = y + row * size + c * length;
            acc slope = s * weight[c], offset = bias[c];
            block_each(length, [&](int64 i) {
                out[i] = real(fma_(acc(own[i]) - middle, slope, offset));
            });
        }
        if (threadIdx.x == 0) {
            mean[row] = middle;
            scale[row] = s;
        }
    }
}

// gx = scale (w g - level - unit tilt) with unit = (x - mean) scale; level and tilt are the means
// over the group of w g and of w g unit. shares (2, N, C): a sample's part of the gradients of
// weight and bias.
__global__ void group_norm_backward(const real *x, const real *g, const acc *w, const acc *mean,
                                    const acc *scale, real *gx, acc *shares, int64 rows,
                                    int64 groups, int64 members, int64 length) {
    int64 size = members * length;
    for (int64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const real *a = x + row * size, *up = g + row * size;
        const acc *weight = w + row % groups * members;
        acc middle = mean[row], s = scale[row];
        double level = 0, tilt = 0;
        for (int64 c = 0; c < members; c++) {
            const real *own = a + c * length, *slope = up + c * length;
            Sums both = block_sums(length, [&](int64 i, acc &sum, acc &product) {
                sum += acc(slope[i]);
                product = fma_(acc(slope[i]), acc(own[i]) - middle, product);
            });
            level += double(both.a) * double(weight[c]);
            tilt += double(both.b) * double(weight[c]);
            if (threadIdx.x == 0) {
                shares[row * members + c] = both.b * s;
                shares[(rows + row) * members + c] = both.a;
            }
        }
        double share = double(s) / double(size);
        acc l = acc(level * share), t = acc(tilt * double(s) * double(s) * share);
        for (int64 c = 0; c < members; c++) {
            const real *own = a + c * length, *slope = up + c * length;
            real *out = gx + row * size + c * length;
            acc steep = weight[c] * s;
            block_each(length, [&](int64 i) {
                out[i] = real(fma_(acc(slope[i]), steep, fma_(middle - acc(own[i]), t, -l)));
            });
        }
    }
}

// The same of x (parts, C, length, columns), for a CPU: with the samples last, (H, C, W, N), a part
// is a row of all images. Column i is of sample i % samples: where images are few, several of their
// pixels stand side by side. mean and scale (groups, columns).
//
// Blocks are as many as groups, too few for a GPU. A part is far from the next one in memory, so
// that is fetched ahead; the second pass begins with the last one, which is still cached.
//
// space (groups, 4, columns): means and squares of columns, each twice over, so that all columns
// of a sample are found from any of them on.
__global__ void column_group_norm_forward(const real *x, const acc *w, const acc *b, real *y,
                                          double *space, acc *mean, acc *scale, int64 parts,
                                          int64 groups, int64 members, int64 length,
                                          int64 columns, int64 samples, double eps) {
    int64 size = length * columns, step = groups * members * size;
    for (int64 group = blockIdx.x; group < groups; group += gridDim.x) {
        int64 first = group * members, end = first + members;
        double *means = space + group * 4 * columns, *squares = means + 2 * columns;
        double n = double(members * length);
        block_strips(columns, [&](int64 start, auto each) {
            double middle[STRIP] = {}, about[STRIP] = {};
            for (int64 part = 0; part < parts; part++) {
                const real *a = x + part * step + first * size + start;
                acc pivot[STRIP] = {}, sum[STRIP] = {}, square[STRIP] = {};
                // Squares are taken about the mean of the parts before, which is close enough.
                if (part == 0) {
                    for (int64 i = 0; i < members * size; i += columns)
                        each([&](int j) { pivot[j] += acc(a[i + j]); });
                    each([&](int j) { pivot[j] /= acc(n); });
                } else {
                    each([&](int j) { pivot[j] = acc(middle[j]); });
                }
                for (int64 i = 0; i < members * size; i += columns) {
                    each.prefetch(a + step + i);
                    each([&](int j) {
                        acc d = acc(a[i + j]) - pivot[j];
                        sum[j] += d;
                        square[j] = fma_(d, d, square[j]);
                    });
                }
                double share = 1 / double(part + 1);
                each([&](int j) {  // see join_moments of batchnorm.cu
                    double s = double(sum[j]), d = s / n + (double(pivot[j]) - middle[j]);
                    middle[j] += d * share;
                    about[j] += double(square[j]) - s * s / n + n * d * d * double(part) * share;
                });
            }
            each([&](int j) {
                means[start + j] = means[start + columns + j] = middle[j];
                squares[start + j] = squares[start + columns + j] = about[j];
            });
        });
        __syncthreads();
        n *= double(parts);
        block_strips(columns, [&](int64 start, auto each) {
            double middle[STRIP] = {}, about[STRIP] = {}, repeats = double(columns / samples);
            for (int64 i = start; i < start + columns; i += samples)
                each([&](int j) { middle[j] += means[i + j] / repeats; });
            for (int64 i = start; i < start + columns; i += samples)
                each([&](int j) {
                    double d = means[i + j] - middle[j];
                    about[j] += squares[i + j] + n * d * d;
                });
            acc m[STRIP], s[STRIP];
            each([&](int j) {
                m[j] = acc(middle[j]);
                s[j] = acc(1 / sqrt_(about[j] / (n * repeats) + eps));
                mean[group * columns + start + j] = m[j];
                scale[group * columns + start + j] = s[j];
            });
            for (int64 part = parts - 1; part >= 0; part--)
                for (int64 c = first; c < end; c++) {
                    const real *a = x + part * step + c * size + start;
                    real *out = y + part * step + c * size + start;
                    acc slope[STRIP], offset = b[c];
                    each([&](int j) { slope[j] = s[j] * w[c]; });
                    for (int64 i = 0; i < size; i += columns)
                        each([&](int j) {
                            out[i + j] = real(fma_(acc(a[i + j]) - m[j], slope[j], offset));
                        });
                }
        });
    }
}

// gradients (2, C): of weight and bias; shares: space for (2, C, columns), a column's part of them.
// space: sums of w g and w g (x - mean), as above.
__global__ void column_group_norm_backward(const real *x, const real *g, const acc *w,
                                           const acc *mean, const acc *scale, real *gx,
                                           double *space, acc *shares, acc *gradients,
                                           int64 parts, int64 groups, int64 members,
                                           int64 length, int64 columns, int64 samples) {
    int64 size = length * columns, channels = groups * members, step = channels * size;
    for (int64 group = blockIdx.x; group < groups; group += gridDim.x) {
        int64 first = group * members, end = first + members;
        const acc *means = mean + group * columns, *scales = scale + group * columns;
        double *levels = space + group * 4 * columns, *tilts = levels + 2 * columns;
        block_strips(columns, [&](int64 start, auto each) {
            acc middle[STRIP];
            each([&](int j) { middle[j] = means[start + j]; });
            for (int64 part = 0; part < parts; part++)
                for (int64 c = first; c < end; c++) {
                    const real *a = x + part * step + c * size + start;
                    const real *up = g + part * step + c * size + start;
                    acc sum[STRIP] = {}, product[STRIP] = {};
                    for (int64 i = 0; i < size; i += columns) {
                        each.prefetch(a + step + i);
                        each.prefetch(up + step + i);
                        each([&](int j) {
                            sum[j] += acc(up[i + j]);
                            acc d = acc(a[i + j]) - middle[j];
                            product[j] = fma_(acc(up[i + j]), d, product[j]);
                        });
                    }
                    acc *along = shares + c * columns + start, *plain = along + channels * columns;
                    each([&](int j) {
                        along[j] = product[j] + (part ? along[j] : 0);
                        plain[j] = sum[j] + (part ? plain[j] : 0);
                    });
                }
            double level[STRIP] = {}, tilt[STRIP] = {};
            for (int64 c = first; c < end; c++) {
                acc *along = shares + c * columns + start, *plain = along + channels * columns;
                each([&](int j) {
                    level[j] += double(plain[j]) * double(w[c]);
                    tilt[j] += double(along[j]) * double(w[c]);
                    along[j] *= scales[start + j];
                });
            }
            each([&](int j) {
                levels[start + j] = levels[start + columns + j] = level[j];
                tilts[start + j] = tilts[start + columns + j] = tilt[j];
            });
        });
        __syncthreads();
        for (int64 c = first; c < end; c++) {
            const acc *along = shares + c * columns, *plain = along + channels * columns;
            Sums both = block_sums(columns, [&](int64 i, acc &a, acc &b) {
                a += along[i];
                b += plain[i];
            });
            if (threadIdx.x == 0) {
                gradients[c] = both.a;
                gradients[channels + c] = both.b;
            }
        }
        block_strips(columns, [&](int64 start, auto each) {
            double level[STRIP] = {}, tilt[STRIP] = {};
            double n = double(parts * members * length * (columns / samples));
            for (int64 i = start; i < start + columns; i += samples)
                each([&](int j) {
                    level[j] += levels[i + j];
                    tilt[j] += tilts[i + j];
                });
            acc middle[STRIP], s[STRIP], l[STRIP], t[STRIP];
            each([&](int j) {
                middle[j] = means[start + j];
                s[j] = scales[start + j];
                l[j] = acc(level[j] * double(s[j]) / n);
                t[j] = acc(tilt[j] * double(s[j]) * double(s[j]) * double(s[j]) / n);
            });
            for (int64 part = parts - 1; part >= 0; part--)
                for (int64 c = first; c < end; c++) {
                    const real *a = x + part * step + c * size + start;
                    const real *up = g + part * step + c * size + start;
                    real *out = gx + part * step + c * size + start;
                    acc slope[STRIP];
                    each([&](int j) { slope[j] = s[j] * w[c]; });
                    for (int64 i = 0; i < size; i += columns)
                        each([&](int j) {
                            out[i + j] = real(fma_(acc(up[i + j]), slope[j],
                                                   fma_(middle[j] - acc(a[i + j]), t[j], -l[j])));
                        });
                }
        });
    }
}
