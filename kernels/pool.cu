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
