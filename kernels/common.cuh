// What every kernel uses. A kernel is plain CUDA C++ and runs in three ways: on a GPU; compiled
// for the CPU with one thread a block, where every loop below is a plain loop over the row that
// the compiler vectorises; and emulated on the CPU, thread by thread.
//
// Rules that make this work:
//   - loops over rows step by gridDim.x, loops inside a row by blockDim.x: any grid and any block
//     give the same bits, but for the order in which a block adds up;
//   - all threads of a block call the block_* functions together;
//   - `real` is how numbers are stored, `acc` how they are computed with: float, for 16-bit types
//     too, or double. One build per type.
#pragma once

#if defined(MINIPAR_EMULATED)
#include "emulated.h"  // CUDA's words on a CPU, thread by thread
#elif defined(MINIPAR_HOST)
#include "host.h"  // CUDA's words on a CPU, one thread a block
#else
#include <cuda_fp16.h>
#include <cuda_bf16.h>
typedef __nv_bfloat16 bfloat16;
#define HUGE __int_as_float(0x7f800000)
#define VECTOR  // loops over the lanes of a CPU have one step here
#define UNROLL _Pragma("unroll")
#define PREFETCH(address)  // for what runs one thread at a time
#endif

typedef long long int64;
typedef int int32;
typedef unsigned int uint32;
typedef unsigned long long uint64;
typedef unsigned char uint8;

#ifndef REAL
#define REAL float
#define ACC float
#endif
typedef REAL real;
typedef ACC acc;

// How many rows or columns a thread takes together: several on a CPU, where it is a whole block.
#if defined(MINIPAR_HOST) && !defined(MINIPAR_EMULATED)
#define PER_THREAD(cpu, gpu) cpu
#else
#define PER_THREAD(cpu, gpu) gpu
#endif

// ---------------------------------------------------------------------------------------------
// Functions of one number. On the GPU they are CUDA's; on the CPU our own, without branches and
// tables, so that a loop over them is vectorised, on every platform alike.

#ifdef MINIPAR_HOST

template <class To, class From> static INLINE To bits_of(From x) {
    return __builtin_bit_cast(To, x);
}

// e^r for |r| <= ln 2 / 2: a minimax polynomial, off by 3e-9 of it.
static INLINE float exp_polynomial(float r) {
    float p = 1.38145406e-3f;
    p = __builtin_fmaf(p, r, 8.36874545e-3f);
    p = __builtin_fmaf(p, r, 4.1668389e-2f);
    p = __builtin_fmaf(p, r, 1.66665211e-1f);
    p = __builtin_fmaf(p, r, 4.9999994e-1f);
    p = __builtin_fmaf(p, r, 1.f);
    return __builtin_fmaf(p, r, 1.f);
}

// e^x. Cody & Waite: x = k ln 2 + r with |r| <= ln 2 / 2, then a polynomial in r, 1 ulp. Adding
// 1.5 * 2^23 rounds to an integer, which then stands in the low bits: k + 254, of which each half
// is the exponent of a factor, so that results overflow, and become subnormal, by rounding.
static INLINE float exp_(float x) {
    // e^89 is infinite, e^-104 is 0. Compared as integers, since of two comparisons of floats GCC
    // makes a net of masks; NaN goes through as something else, and comes back at the end.
    int top = bits_of<int>(x) < bits_of<int>(89.f) ? bits_of<int>(x) : bits_of<int>(89.f);
    float c = bits_of<float>(top);
    c = c < -104.f ? -104.f : c;
    float t = __builtin_fmaf(c, 1.44269504088896341f, 12583166.f), k = t - 12583166.f;
    float r = __builtin_fmaf(k, -0.693359375f, c);
    r = __builtin_fmaf(k, 2.12194440e-4f, r);
    float p = exp_polynomial(r);
    uint32 both = bits_of<uint32>(t), half = both >> 1;
    p *= bits_of<float>(half << 23);
    p *= bits_of<float>((both - half) << 23);
    return x != x ? x : p;
}
static INLINE double exp_(double x) { return __builtin_exp(x); }

// e^x for x <= 0, where 2^(k + 32) and then 2^-32 will do.
static INLINE float exp_below0(float x) {
    float c = x < -104.f ? -104.f : x;
    float t = __builtin_fmaf(c, 1.44269504088896341f, 12582944.f), k = t - 12582944.f;
    float r = __builtin_fmaf(k, -0.693359375f, c);
    r = __builtin_fmaf(k, 2.12194440e-4f, r);
    float p = exp_polynomial(r);
    p = bits_of<float>(bits_of<uint32>(p) + (bits_of<uint32>(t) << 23));
    return __builtin_fmaf(p, 0x1p-32f, r - r);  // r - r: 0, or NaN
}
static INLINE double exp_below0(double x) { return __builtin_exp(x); }

// Natural logarithm (Cephes): x = 2^k m with sqrt(1/2) <= m < sqrt(2), a polynomial in m - 1.
static INLINE float log_(float x) {
    float scaled = x < 1.17549435e-38f ? x * 8388608.f : x;  // subnormals
    int bits = bits_of<int>(scaled);
    int k = ((bits >> 23) & 255) - 126;
    float m = bits_of<float>((bits & 0x7fffff) | 0x3f000000);  // in [1/2, 1)
    int low = m < 0.707106781186547524f;
    k -= low + (x < 1.17549435e-38f ? 23 : 0);
    m = (low ? m + m : m) - 1.f;
    float z = m * m, e = (float)k;
    float p = 7.0376836292e-2f;
    p = __builtin_fmaf(p, m, -1.1514610310e-1f);
    p = __builtin_fmaf(p, m, 1.1676998740e-1f);
    p = __builtin_fmaf(p, m, -1.2420140846e-1f);
    p = __builtin_fmaf(p, m, 1.4249322787e-1f);
    p = __builtin_fmaf(p, m, -1.6668057665e-1f);
    p = __builtin_fmaf(p, m, 2.0000714765e-1f);
    p = __builtin_fmaf(p, m, -2.4999993993e-1f);
    p = __builtin_fmaf(p, m, 3.3333331174e-1f);
    p = p * m * z;
    p = __builtin_fmaf(e, -2.12194440e-4f, p);
    p = __builtin_fmaf(z, -0.5f, p);
    p = __builtin_fmaf(e, 0.693359375f, m + p);
    p = x == HUGE ? x : p;
    p = x == 0.f ? -HUGE : p;
    return x < 0.f || x != x ? bits_of<float>(0x7fc00000) : p;
}
static INLINE double log_(double x) { return __builtin_log(x); }

// tanh: a polynomial near 0 (Cephes), elsewhere 1 - 2 / (e^2x + 1).
static INLINE float tanh_(float x) {
    float a = __builtin_fabsf(x), z = x * x;
    float p = -5.70498872745e-3f;
    p = __builtin_fmaf(p, z, 2.06390887954e-2f);
    p = __builtin_fmaf(p, z, -5.37397155531e-2f);
    p = __builtin_fmaf(p, z, 1.33314422036e-1f);
    p = __builtin_fmaf(p, z, -3.33332819422e-1f);
    p = __builtin_fmaf(p * z, x, x);
    float far = 1.f - 2.f / (exp_(a + a) + 1.f);
    return a < 0.625f ? p : __builtin_copysignf(far, x);  // NaN takes the second, and stays
}
static INLINE double tanh_(double x) { return __builtin_tanh(x); }
static INLINE double erfc_(double x) { return __builtin_erfc(x); }

static INLINE float abs_(float x) { return __builtin_fabsf(x); }
static INLINE double abs_(double x) { return __builtin_fabs(x); }
static INLINE float sqrt_(float x) { return __builtin_sqrtf(x); }
static INLINE double sqrt_(double x) { return __builtin_sqrt(x); }
static INLINE float fma_(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static INLINE double fma_(double a, double b, double c) { return __builtin_fma(a, b, c); }

#else

static __device__ __forceinline__ float exp_(float x) { return expf(x); }
static __device__ __forceinline__ double exp_(double x) { return exp(x); }
static __device__ __forceinline__ float exp_below0(float x) { return expf(x); }
static __device__ __forceinline__ double exp_below0(double x) { return exp(x); }
static __device__ __forceinline__ float log_(float x) { return logf(x); }
static __device__ __forceinline__ double log_(double x) { return log(x); }
static __device__ __forceinline__ float tanh_(float x) { return tanhf(x); }
static __device__ __forceinline__ double tanh_(double x) { return tanh(x); }
static __device__ __forceinline__ double erfc_(double x) { return erfc(x); }
static __device__ __forceinline__ float abs_(float x) { return fabsf(x); }
static __device__ __forceinline__ double abs_(double x) { return fabs(x); }
static __device__ __forceinline__ float sqrt_(float x) { return sqrtf(x); }
static __device__ __forceinline__ double sqrt_(double x) { return sqrt(x); }
static __device__ __forceinline__ float fma_(float a, float b, float c) { return fmaf(a, b, c); }
static __device__ __forceinline__ double fma_(double a, double b, double c) { return fma(a, b, c); }

#endif

// The larger of two numbers, in one instruction: which of them, if one is NaN, is not said.
template <class N> static __device__ __forceinline__ N larger(N a, N b) { return a < b ? b : a; }

// ---------------------------------------------------------------------------------------------
// Loops: f(i) for every 0 <= i < n, in no order. for_each by all blocks together, block_each by
// the threads of one.

#if defined(MINIPAR_HOST) && !defined(MINIPAR_EMULATED)

// 16 steps side by side, of which the last ones may be idle: all elements take the same
// instructions, so that a result does not depend on where a buffer was cut.
template <class F> static INLINE void by_16(int64 i, int64 end, F f) {
    for (; i + 16 <= end; i += 16) {
        VECTOR
        for (int j = 0; j < 16; j++) f(i + j);
    }
    if (int left = int(end - i); left > 0) {
        VECTOR
        for (int j = 0; j < 16; j++)
            if (j < left) f(i + j);
    }
}

template <class F> static INLINE void for_each(int64 n, F f) {
    by_16(n * blockIdx.x / gridDim.x, n * (blockIdx.x + 1ll) / gridDim.x, f);
}

template <class F> static INLINE void block_each(int64 n, F f) { by_16(0, n, f); }

#else

template <class F> static __device__ __forceinline__ void for_each(int64 n, F f) {
    int64 step = (int64)gridDim.x * blockDim.x;
    for (int64 i = (int64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) f(i);
}

template <class F> static __device__ __forceinline__ void block_each(int64 n, F f) {
    for (int64 i = threadIdx.x; i < n; i += blockDim.x) f(i);
}

#endif

// ---------------------------------------------------------------------------------------------
// Reductions over a row by one block: every thread gets the result.

// How two partial results become one.
struct Add {
    template <class N> __device__ __forceinline__ N operator()(N a, N b) const { return a + b; }
};
struct Larger {
    template <class N> __device__ __forceinline__ N operator()(N a, N b) const {
        return larger(a, b);
    }
};

#if defined(MINIPAR_HOST) && !defined(MINIPAR_EMULATED)

// One thread a block: 16 running results side by side, which the compiler keeps in one or two
// vector registers. Element i always goes to result i % 16: the sum of a row does not depend on
// the machine's vectors.
template <class N, class F, class Join>
static INLINE N block_reduce(int64 n, N start, F value, Join join) {
    N lane[16];
    for (int j = 0; j < 16; j++) lane[j] = start;
    int64 i = 0;
    if (n >= 128) {  // more of them while many are to come: one addition waits for the one before
        N more[64];
        for (int j = 0; j < 64; j++) more[j] = start;
        for (; i + 64 <= n; i += 64) {
            VECTOR
            for (int j = 0; j < 64; j++) more[j] = join(more[j], value(i + j));
        }
        VECTOR
        for (int j = 0; j < 16; j++)
            lane[j] = join(join(more[j], more[j + 16]), join(more[j + 32], more[j + 48]));
    }
    for (; i + 16 <= n; i += 16) {
        VECTOR
        for (int j = 0; j < 16; j++) lane[j] = join(lane[j], value(i + j));
    }
    if (int left = int(n - i)) {
        VECTOR
        for (int j = 0; j < 16; j++) {
            N l = lane[j];
            if (j < left) l = join(l, value(i + j));
            lane[j] = l;
        }
    }
    VECTOR
    for (int j = 0; j < 8; j++) lane[j] = join(lane[j], lane[j + 8]);
    VECTOR
    for (int j = 0; j < 4; j++) lane[j] = join(lane[j], lane[j + 4]);
    VECTOR
    for (int j = 0; j < 2; j++) lane[j] = join(lane[j], lane[j + 2]);
    return join(lane[0], lane[1]);
}

// Two sums over a row in one pass: value(i, a, b) adds to a and b what element i gives.
struct Sums { acc a, b; };
template <class F> static INLINE Sums block_sums(int64 n, F value) {
    acc a[16] = {}, b[16] = {};
    int64 i = 0;
    for (; i + 16 <= n; i += 16) {
        VECTOR
        for (int j = 0; j < 16; j++) value(i + j, a[j], b[j]);
    }
    if (int left = int(n - i)) {
        VECTOR
        for (int j = 0; j < 16; j++) {
            acc c = 0, d = 0;  // not a and b: what a mask stores takes long to be read again
            if (j < left) value(i + j, c, d);
            a[j] += c, b[j] += d;
        }
    }
    VECTOR
    for (int j = 0; j < 8; j++) a[j] += a[j + 8], b[j] += b[j + 8];
    VECTOR
    for (int j = 0; j < 4; j++) a[j] += a[j + 4], b[j] += b[j + 4];
    return {(a[0] + a[2]) + (a[1] + a[3]), (b[0] + b[2]) + (b[1] + b[3])};
}

#else

// Threads of a warp exchange registers; then warps exchange through shared memory.
template <class N, class F, class Join>
static __device__ __forceinline__ N block_reduce(int64 n, N start, F value, Join join) {
    __shared__ N partial[32];
    N total = start;
    for (int64 i = threadIdx.x; i < n; i += blockDim.x) total = join(total, value(i));
    for (int offset = 16; offset; offset /= 2)
        total = join(total, __shfl_xor_sync(0xffffffffu, total, offset));
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = (blockDim.x + 31) / 32;
    __syncthreads();  // `partial` may still be read for the reduction before this one
    if (lane == 0) partial[warp] = total;
    __syncthreads();
    total = lane < warps ? partial[lane] : start;
    for (int offset = 16; offset; offset /= 2)
        total = join(total, __shfl_xor_sync(0xffffffffu, total, offset));
    return total;
}

// Two sums over a row in one pass: value(i, a, b) adds to a and b what element i gives.
struct Sums { acc a, b; };
template <class F> static __device__ __forceinline__ Sums block_sums(int64 n, F value) {
    acc a = 0, b = 0;
    for (int64 i = threadIdx.x; i < n; i += blockDim.x) value(i, a, b);
    int64 threads = blockDim.x;
    return {block_reduce(threads, acc(0), [&](int64) { return a; }, Add()),
            block_reduce(threads, acc(0), [&](int64) { return b; }, Add())};
}

#endif

// The sum of value(i) for 0 <= i < n.
template <class F> static __device__ __forceinline__ acc block_sum(int64 n, F value) {
    return block_reduce(n, acc(0), value, Add());
}

// The largest value(i), NaN left aside; -infinity if there is none. (Softmax meets a NaN again.)
template <class F> static __device__ __forceinline__ acc block_max(int64 n, F value) {
    return block_reduce(n, acc(-HUGE), value, Larger());
}
