// Depthwise convolution: every channel of an image has a kernel of its own, so there are no
// matrices to be multiplied. Images (H, C, W, N), weights (C, kh, kw).
//
// Flops: 2 kh kw for each output, of bytes that neighbours share in the cache: about as many as
// can be read from there.
#include "windows.cuh"

// out = bias + the sum over the taps of w x. lines = Ho C.
__global__ void depthwise_forward(const real *x, const real *w, const real *bias, real *out,
                                  int64 lines, int64 h, int64 channels, int64 width, int64 n,
                                  int64 ho, int64 wo, int kh, int kw, int sh, int sw, int ph,
                                  int pw) {
    Geometry s = {h, channels, width, n, ho, wo, kh, kw, sh, sw, ph, pw};
    each_window(s, lines, [&](const Window &v, auto each) {
        acc sum[LANES];
        each([&](int j) { sum[j] = acc(bias[v.middle]); });
        for (int64 b = v.y0; b < v.y1; b++)
            for (int64 c = v.x0; c < v.x1; c++) {
                const real *from = x + v.first + (b * channels * width + c) * n;
                acc weight = acc(w[(v.middle * kh + b) * kw + c]);
                each([&](int j) { sum[j] = fma_(weight, acc(from[j]), sum[j]); });
            }
        each([&](int j) { out[v.out + j] = real(sum[j]); });
    });
}

// gx = the sum over the windows over an input of w g. lines = H C.
__global__ void depthwise_input_gradient(const real *g, const real *w, real *gx, int64 lines,
                                         int64 h, int64 channels, int64 width, int64 n, int64 ho,
                                         int64 wo, int kh, int kw, int sh, int sw, int ph,
                                         int pw) {
    Geometry s = {h, channels, width, n, ho, wo, kh, kw, sh, sw, ph, pw};
    each_input(s, lines, [&](const Covered &v, auto each) {
        acc sum[LANES] = {};
        for (int64 i = v.i0; i < v.i1; i++)
            for (int64 j = v.j0; j < v.j1; j++) {
                const real *from = g + v.out + (i * channels * wo + j) * n;
                acc weight = acc(w[(v.middle * kh + v.y - i * sh) * kw + v.x - j * sw]);
                each([&](int k) { sum[k] = fma_(weight, acc(from[k]), sum[k]); });
            }
        each([&](int k) { gx[v.in + k] = real(sum[k]); });
    });
}

// gw (Ho, C, kh, kw) = for each row of the output, lines = Ho C, the sums of g x under each tap.
__global__ void depthwise_weight_gradient(const real *g, const real *x, acc *gw, int64 lines,
                                          int64 h, int64 channels, int64 width, int64 n, int64 ho,
                                          int64 wo, int kh, int kw, int sh, int sw, int ph,
                                          int pw) {
    for (int64 line = blockIdx.x; line < lines; line += gridDim.x) {
        int64 top = line / channels * sh - ph, channel = line % channels;
        const real *slope = g + line * wo * n;
        for (int tap = 0; tap < kh * kw; tap++) {
            int64 y = top + tap / kw, left = tap % kw - pw;  // column j reads left + j sw
            int64 begin = left < 0 ? (-left + sw - 1) / sw : 0;
            int64 end = left < width ? least(wo, (width - 1 - left) / sw + 1) : 0;
            int64 size = y < 0 || y >= h ? 0 : most(0, end - begin) * n;
            const real *from = x + ((y * channels + channel) * width + left) * n;
            acc sum = 0;
            if (sw == 1)
                sum = block_sum(size, [&](int64 i) {
                    return acc(slope[begin * n + i]) * acc(from[begin * n + i]);
                });
            else
                for (int64 j = begin; j < begin + size / n; j++)
                    sum += block_sum(n, [&](int64 i) {
                        return acc(slope[j * n + i]) * acc(from[j * sw * n + i]);
                    });
            if (threadIdx.x == 0) gw[line * kh * kw + tap] = sum;
        }
    }
}
