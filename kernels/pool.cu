// Maximum and average pooling of images, in whichever order they lie in memory (windows.cuh).
//
// Bytes: each output reads its window, which neighbours share in the cache; each input's gradient
// what the windows over it got.
#include "windows.cuh"

// y = the largest element of each window, NaN if it has one; tap = which of the window it is, the
// first of equal ones.
__global__ void max_pool_forward(const real *x, real *y, uint8 *tap, int64 lines, int64 h,
                                 int64 middle, int64 w, int64 inner, int64 ho, int64 wo, int kh,
                                 int kw, int sh, int sw, int ph, int pw) {
    Geometry s = {h, middle, w, inner, ho, wo, kh, kw, sh, sw, ph, pw};
    each_window(s, lines, [&](const Window &v, auto each) {
        acc best[LANES], which[LANES];  // numbers, like the values: one kind of vector
        const real *first = x + v.first + (v.y0 * middle * w + v.x0) * inner;
        each([&](int j) {
            best[j] = acc(first[j]);
            which[j] = acc(v.y0 * kw + v.x0);
        });
        for (int64 b = v.y0; b < v.y1; b++)
            for (int64 c = v.x0; c < v.x1; c++) {
                const real *from = x + v.first + (b * middle * w + c) * inner;
                acc number = acc(b * kw + c);
                each([&](int j) {
                    acc value = acc(from[j]);
                    bool better = (value > best[j]) | (value != value);
                    best[j] = better ? value : best[j];
                    which[j] = better ? number : which[j];
                });
            }
        each([&](int j) {
            y[v.out + j] = real(best[j]);
            tap[v.out + j] = uint8(int(which[j]));
        });
    });
}

// Each input gets the gradients of the windows that it is the largest of.
__global__ void max_pool_backward(const real *g, const uint8 *tap, real *gx, int64 lines, int64 h,
                                  int64 middle, int64 w, int64 inner, int64 ho, int64 wo, int kh,
                                  int kw, int sh, int sw, int ph, int pw) {
    Geometry s = {h, middle, w, inner, ho, wo, kh, kw, sh, sw, ph, pw};
    each_input(s, lines, [&](const Covered &v, auto each) {
        acc sum[LANES] = {};
        for (int64 i = v.i0; i < v.i1; i++)
            for (int64 j = v.j0; j < v.j1; j++) {
                int64 from = v.out + (i * middle * wo + j) * inner;
                int number = int((v.y - i * sh) * kw + v.x - j * sw);
                each([&](int k) {
                    sum[k] += int(tap[from + k]) == number ? acc(g[from + k]) : acc(0);
                });
            }
        each([&](int k) { gx[v.in + k] = real(sum[k]); });
    });
}

// The same two for a CPU where the elements of a row are neighbours, (N, C, H, W): middle and inner
// are 1. Lanes run along a row of the output, and gather what is sw apart.
__global__ void max_pool_rows(const real *x, real *y, uint8 *tap, int64 lines, int64 h,
                              int64 middle, int64 w, int64 inner, int64 ho, int64 wo, int kh,
                              int kw, int sh, int sw, int ph, int pw) {
    for (int64 line = blockIdx.x; line < lines; line += gridDim.x) {
        int64 top = line % ho * sh - ph, y0 = most(0, -top), y1 = least(kh, h - top);
        const real *plane = x + line / ho * h * w;
        block_lanes(wo, [&](int64 start, auto each) {
            acc best[LANES], which[LANES];
            int left = int(start) * sw - pw, y0_tap = int(y0) * kw;
            each([&](int j) {
                int column = left + j * sw;  // of the first tap, maybe outside
                best[j] = -HUGE;
                which[j] = acc(y0_tap + (column < 0 ? -column : 0));
            });
            for (int64 b = y0; b < y1; b++)
                for (int c = 0; c < kw; c++) {
                    const real *row = plane + (top + b) * w;
                    acc number = acc(int(b) * kw + c);
                    each([&](int j) {
                        int at = left + c + j * sw;
                        acc value = uint32(at) < uint32(w) ? acc(row[at]) : acc(-HUGE);
                        bool better = (value > best[j]) | (value != value);
                        best[j] = better ? value : best[j];
                        which[j] = better ? number : which[j];
                    });
                }
            each([&](int j) {
                y[line * wo + start + j] = real(best[j]);
                tap[line * wo + start + j] = uint8(int(which[j]));
            });
        });
    }
}

// Each window gives its gradient to its largest element: by a thread that has the plane (H, W) for
// itself, in the order in which the inputs of `max_pool_backward` take them.
__global__ void max_pool_planes(const real *g, const uint8 *tap, real *gx, int64 lines, int64 h,
                                int64 middle, int64 w, int64 inner, int64 ho, int64 wo, int kh,
                                int kw, int sh, int sw, int ph, int pw) {
    int64 thread = blockIdx.x * int64(blockDim.x) + threadIdx.x;
    for (int64 plane = thread; plane < lines; plane += gridDim.x * int64(blockDim.x)) {
        real *out = gx + plane * h * w;
        for (int64 i = 0; i < h * w; i++) out[i] = real(0);
        for (int64 i = 0; i < ho; i++)
            for (int64 j = 0; j < wo; j++) {
                int64 from = (plane * ho + i) * wo + j;
                int b = tap[from] / kw, c = tap[from] - b * kw;
                real *to = out + (i * sh + b - ph) * w + j * sw + c - pw;
                *to = real(acc(*to) + acc(g[from]));
            }
    }
}

// y = the sum of each window, padding being 0, times its share (Ho, Wo).
__global__ void average_pool_forward(const real *x, const acc *share, real *y, int64 lines,
                                     int64 h, int64 middle, int64 w, int64 inner, int64 ho,
                                     int64 wo, int kh, int kw, int sh, int sw, int ph, int pw) {
    Geometry s = {h, middle, w, inner, ho, wo, kh, kw, sh, sw, ph, pw};
    each_window(s, lines, [&](const Window &v, auto each) {
        acc sum[LANES] = {}, part = share[v.pixel];
        for (int64 b = v.y0; b < v.y1; b++)
            for (int64 c = v.x0; c < v.x1; c++) {
                const real *from = x + v.first + (b * middle * w + c) * inner;
                each([&](int j) { sum[j] += acc(from[j]); });
            }
        each([&](int j) { y[v.out + j] = real(sum[j] * part); });
    });
}

// Each input gets its share of the gradients of the windows over it.
__global__ void average_pool_backward(const real *g, const acc *share, real *gx, int64 lines,
                                      int64 h, int64 middle, int64 w, int64 inner, int64 ho,
                                      int64 wo, int kh, int kw, int sh, int sw, int ph, int pw) {
    Geometry s = {h, middle, w, inner, ho, wo, kh, kw, sh, sw, ph, pw};
    each_input(s, lines, [&](const Covered &v, auto each) {
        acc sum[LANES] = {};
        for (int64 i = v.i0; i < v.i1; i++)
            for (int64 j = v.j0; j < v.j1; j++) {
                const real *from = g + v.out + (i * middle * wo + j) * inner;
                acc part = share[i * wo + j];
                each([&](int k) { sum[k] = fma_(acc(from[k]), part, sum[k]); });
            }
        each([&](int k) { gx[v.in + k] = real(sum[k]); });
    });
}
