// Maximum and average pooling of images, as they lie in memory: (outer, H, middle, W, inner).
// What convolutions make, (H, C, W, N), has middle = C and inner = N; channels last have outer = N
// and inner = C; (N, C, H, W) has outer = N C and inner = 1. Lanes run along `inner`.
//
// Every output, and every input's gradient, is gathered by one thread: nothing is added by two,
// and results do not depend on their order. Bytes: each output reads its window (which neighbours
// share, in the cache), each input's gradient what the windows over it got.
#include "lanes.cuh"

struct Geometry {
    int64 h, middle, w, inner, ho, wo;
    int kh, kw, sh, sw, ph, pw;  // kernel, stride, padding
};

static __device__ __forceinline__ int64 least(int64 a, int64 b) { return a < b ? a : b; }
static __device__ __forceinline__ int64 most(int64 a, int64 b) { return a < b ? b : a; }

// f(place, start, each) for all places (width, inner) of a line, by the threads of a block.
template <class F>
static __device__ __forceinline__ void along_line(int64 width, int64 inner, F f) {
    int64 parts = (inner + LANES - 1) / LANES;
    for (int64 i = threadIdx.x; i < width * parts; i += blockDim.x)
        lanes_from(i % parts * LANES, inner, [&](int64 start, auto each) {
            f(i / parts, start, each);
        });
}

struct Window {
    int64 first;           // place in the input of tap (0, 0), maybe outside
    int64 y0, y1, x0, x1;  // the taps that are inside: y0 <= y < y1, x0 <= x < x1
    int64 out, pixel;      // place in the output; row * Wo + column there
};

// f(window, each) for the windows of all lines (outer, Ho, middle).
template <class F>
static __device__ __forceinline__ void each_window(const Geometry &s, int64 lines, F f) {
    for (int64 line = blockIdx.x; line < lines; line += gridDim.x) {
        int64 m = line % s.middle, i = line / s.middle % s.ho, o = line / s.middle / s.ho;
        int64 top = i * s.sh - s.ph, y0 = most(0, -top), y1 = least(s.kh, s.h - top);
        int64 first = ((o * s.h + top) * s.middle + m) * s.w;
        along_line(s.wo, s.inner, [&](int64 j, int64 start, auto each) {
            int64 left = j * s.sw - s.pw;
            f(Window{(first + left) * s.inner + start, y0, y1, most(0, -left),
                     least(s.kw, s.w - left), (line * s.wo + j) * s.inner + start, i * s.wo + j},
              each);
        });
    }
}

// The windows over an input: (i, j) with i0 <= i < i1 and j0 <= j < j1. It is their tap
// (y - i sh, x - j sw).
struct Covered {
    int64 y, x, i0, i1, j0, j1;
    int64 in, out;  // place in the input; of window (0, 0) of its channel in the output
};

// f(covered, each) for the inputs of all lines (outer, H, middle).
template <class F>
static __device__ __forceinline__ void each_input(const Geometry &s, int64 lines, F f) {
    auto from = [](int64 at, int64 kernel, int64 stride) {
        return at < kernel ? 0 : (at - kernel) / stride + 1;
    };
    for (int64 line = blockIdx.x; line < lines; line += gridDim.x) {
        int64 m = line % s.middle, o = line / s.middle / s.h;
        int64 y = line / s.middle % s.h + s.ph;
        int64 i0 = from(y, s.kh, s.sh), i1 = least(s.ho, y / s.sh + 1);
        along_line(s.w, s.inner, [&](int64 column, int64 start, auto each) {
            int64 x = column + s.pw;
            f(Covered{y, x, i0, i1, from(x, s.kw, s.sw), least(s.wo, x / s.sw + 1),
                      (line * s.w + column) * s.inner + start,
                      (o * s.ho * s.middle + m) * s.wo * s.inner + start}, each);
        });
    }
}

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
