// Windows that slide over images, as they lie in memory: (outer, H, middle, W, inner). What
// convolutions make, (H, C, W, N), has middle = C and inner = N; channels last have outer = N and
// inner = C; (N, C, H, W) has outer = N C and inner = 1. Lanes run along `inner`.
//
// Every output, and every input's gradient, is gathered by one thread: nothing is added by two,
// and results do not depend on their order.
#pragma once
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
    int64 middle, row;     // which of the middle; row of the output
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
            f(Window{m, i, (first + left) * s.inner + start, y0, y1, most(0, -left),
                     least(s.kw, s.w - left), (line * s.wo + j) * s.inner + start, i * s.wo + j},
              each);
        });
    }
}

// The windows over an input: (i, j) with i0 <= i < i1 and j0 <= j < j1. It is their tap
// (y - i sh, x - j sw).
struct Covered {
    int64 middle, y, x, i0, i1, j0, j1;
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
            f(Covered{m, y, x, i0, i1, from(x, s.kw, s.sw), least(s.wo, x / s.sw + 1),
                      (line * s.w + column) * s.inner + start,
                      (o * s.ho * s.middle + m) * s.wo * s.inner + start}, each);
        });
    }
}
