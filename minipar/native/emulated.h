// CUDA's words on a CPU, every thread of a block a fiber: what a kernel sees of the emulator
// (emulator.cpp). Included before the kernel's own text, in which each `__shared__` declaration
// has become SHARED(...) or SHARED_DYNAMIC(...).
//
// Functions whose place in the kernel is reported are inlined into it: the address that they
// return to is then a line of the kernel.
#pragma once
#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#define INLINE inline __attribute__((always_inline))
#undef HUGE
#define HUGE __builtin_inff()
#define VECTOR
#define UNROLL
#define PREFETCH(address)
#define __global__ __attribute__((noinline))
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __forceinline__ INLINE
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__
#include "half.h"

// ---------------------------------------------------------------------------------------------
// Types

#define VECTOR_TYPES(T, N, A)                                                                     \
    struct N##1 { T x; };                                                                         \
    struct __align__(2 * A) N##2 { T x, y; };                                                     \
    struct N##3 { T x, y, z; };                                                                   \
    struct __align__(4 * A > 16 ? 16 : 4 * A) N##4 { T x, y, z, w; };                             \
    static INLINE N##2 make_##N##2(T x, T y) { return {x, y}; }                                   \
    static INLINE N##3 make_##N##3(T x, T y, T z) { return {x, y, z}; }                           \
    static INLINE N##4 make_##N##4(T x, T y, T z, T w) { return {x, y, z, w}; }
VECTOR_TYPES(char, char, 1)
VECTOR_TYPES(unsigned char, uchar, 1)
VECTOR_TYPES(short, short, 2)
VECTOR_TYPES(unsigned short, ushort, 2)
VECTOR_TYPES(int, int, 4)
VECTOR_TYPES(unsigned, uint, 4)
VECTOR_TYPES(float, float, 4)
VECTOR_TYPES(double, double, 8)
#undef VECTOR_TYPES

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Constant for a thread, which runs on its own stack and sees them change never.
extern "C" {
extern const uint3 threadIdx, blockIdx;
extern const dim3 blockDim, gridDim;
}
static constexpr int warpSize = 32;

// ---------------------------------------------------------------------------------------------
// What the emulator does

extern "C" {
void *minipar_shared(int *key, const char *name, size_t bytes, unsigned unit);
void *minipar_dynamic(const char *name);
int minipar_barrier(int kind, int value);
uint64_t minipar_warp(int kind, unsigned mask, uint64_t value, int lane, int width);
unsigned minipar_active();
void minipar_fence();
void minipar_atomic(void *address, size_t bytes, void *pc);
void minipar_changed();
void minipar_trap();
extern const int minipar_silent;  // a launch's second run prints nothing
}
#define printf(...) (minipar_silent ? 0 : printf(__VA_ARGS__))

// The unit in which races are told apart: a number. Bytes, where a variable can hold any type.
template <class T> constexpr unsigned minipar_unit() {
    using N = std::remove_cv_t<std::remove_all_extents_t<T>>;
    return std::is_scalar<N>::value && sizeof(N) <= 8 ? sizeof(N) : 1;
}
template <class T> using Same = T;
#define SHARED(name, ...)                                                                         \
    static int name##_key;                                                                        \
    auto &name = *(Same<__VA_ARGS__> *)minipar_shared(                                            \
        &name##_key, #name, sizeof(Same<__VA_ARGS__>), minipar_unit<Same<__VA_ARGS__>>())
#define SHARED_DYNAMIC(name, ...) auto *const name = (__VA_ARGS__ *)minipar_dynamic(#name)

enum { SYNC, SYNC_OR, SYNC_AND, SYNC_COUNT };
static INLINE void minipar_order() { asm volatile("" ::: "memory"); }
static INLINE int minipar_sync(int kind, int value) {
    minipar_order();
    int result = minipar_barrier(kind, value);
    minipar_order();
    return result;
}
#define __syncthreads() ((void)minipar_sync(SYNC, 0))
#define __syncthreads_or(p) minipar_sync(SYNC_OR, !!(p))
#define __syncthreads_and(p) minipar_sync(SYNC_AND, !!(p))
#define __syncthreads_count(p) minipar_sync(SYNC_COUNT, !!(p))

static INLINE void __threadfence() { minipar_order(), minipar_fence(); }
static INLINE void __threadfence_block() { minipar_order(); }
static INLINE void __threadfence_system() { minipar_order(), minipar_fence(); }

// Warps: the kinds are emulator.cpp's.
enum { WARP_SYNC, BALLOT, SHUFFLE, SHUFFLE_UP, SHUFFLE_DOWN, SHUFFLE_XOR, MATCH };
template <class T>
static INLINE T minipar_exchange(int kind, unsigned mask, T value, int lane, int width) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &value, sizeof(T));
    bits = minipar_warp(kind, mask, bits, lane, width);
    __builtin_memcpy(&value, &bits, sizeof(T));
    return value;
}
template <class T> static INLINE T __shfl_sync(unsigned mask, T v, int lane, int width = 32) {
    return minipar_exchange(SHUFFLE, mask, v, lane, width);
}
template <class T> static INLINE T __shfl_up_sync(unsigned mask, T v, int by, int width = 32) {
    return minipar_exchange(SHUFFLE_UP, mask, v, by, width);
}
template <class T> static INLINE T __shfl_down_sync(unsigned mask, T v, int by, int width = 32) {
    return minipar_exchange(SHUFFLE_DOWN, mask, v, by, width);
}
template <class T> static INLINE T __shfl_xor_sync(unsigned mask, T v, int by, int width = 32) {
    return minipar_exchange(SHUFFLE_XOR, mask, v, by, width);
}
static INLINE void __syncwarp(unsigned mask = 0xffffffffu) {
    minipar_order();
    minipar_warp(WARP_SYNC, mask, 0, 0, 32);
    minipar_order();
}
static INLINE unsigned __ballot_sync(unsigned mask, int p) {
    return (unsigned)minipar_warp(BALLOT, mask, p != 0, 0, 32);
}
static INLINE int __any_sync(unsigned mask, int p) { return __ballot_sync(mask, p) != 0; }
static INLINE int __all_sync(unsigned mask, int p) { return __ballot_sync(mask, !p) == 0; }
template <class T> static INLINE unsigned __match_any_sync(unsigned mask, T v) {
    return (unsigned)minipar_exchange(MATCH, mask, (uint64_t)v, 0, 32);
}
static INLINE unsigned __activemask() { return minipar_active(); }

// ---------------------------------------------------------------------------------------------
// Atomic operations. No thread runs between the two halves of one. Their read and write are made
// outside of the compiler's instrumentation, which would take them for plain ones.

template <class T, class F>
__attribute__((noinline, no_sanitize("thread"))) T minipar_update(T *address, F change) {
    minipar_atomic(address, sizeof(T), __builtin_return_address(0));
    T old = *address, changed = change(old);
    if (std::memcmp(&changed, &old, sizeof(T))) minipar_changed();
    *address = changed;
    return old;
}
#define ATOMIC(name, expression)                                                                  \
    template <class T> static INLINE T name(T *address, std::common_type_t<T> v) {                \
        return minipar_update(address, [=](T old) __attribute__((no_sanitize("thread"))) -> T {   \
            return (void)v, expression;                                                           \
        });                                                                                       \
    }
ATOMIC(atomicAdd, old + v)
ATOMIC(atomicSub, old - v)
ATOMIC(atomicExch, v)
ATOMIC(atomicMin, v < old ? v : old)
ATOMIC(atomicMax, old < v ? v : old)
ATOMIC(atomicInc, old >= v ? 0 : old + 1)
ATOMIC(atomicDec, old == 0 || old > v ? v : old - 1)
ATOMIC(atomicAnd, old & v)
ATOMIC(atomicOr, old | v)
ATOMIC(atomicXor, old ^ v)
#undef ATOMIC
template <class T>
static INLINE T atomicCAS(T *address, std::common_type_t<T> expected, std::common_type_t<T> v) {
    return minipar_update(address, [=](T old) __attribute__((no_sanitize("thread"))) -> T {
        return old == expected ? v : old;
    });
}

// ---------------------------------------------------------------------------------------------
// Functions that C++ has under other names or not at all

template <class A, class B> static INLINE std::common_type_t<A, B> min(A a, B b) {
    return b < a ? b : a;
}
template <class A, class B> static INLINE std::common_type_t<A, B> max(A a, B b) {
    return a < b ? b : a;
}
static INLINE float rsqrtf(float x) { return 1.f / sqrtf(x); }
static INLINE double rsqrt(double x) { return 1. / sqrt(x); }
static INLINE float __saturatef(float x) { return x > 1.f ? 1.f : x > 0.f ? x : 0.f; }
static INLINE float __fdividef(float a, float b) { return a / b; }
static INLINE float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static INLINE int __float2int_rn(float x) { return (int)rintf(x); }
static INLINE int __float2int_rz(float x) { return (int)x; }
static INLINE int __float_as_int(float x) { int r; __builtin_memcpy(&r, &x, 4); return r; }
static INLINE unsigned __float_as_uint(float x) { return (unsigned)__float_as_int(x); }
static INLINE float __int_as_float(int x) { float r; __builtin_memcpy(&r, &x, 4); return r; }
static INLINE float __uint_as_float(unsigned x) { return __int_as_float((int)x); }
static INLINE int __popc(unsigned x) { return __builtin_popcount(x); }
static INLINE int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static INLINE int __ffs(int x) { return __builtin_ffs(x); }
static INLINE int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static INLINE unsigned __umulhi(unsigned a, unsigned b) {
    return (unsigned)((unsigned long long)a * b >> 32);
}
template <class T> static INLINE T __ldg(const T *address) { return *address; }
static INLINE void __trap() { minipar_trap(); }
#define __expf(x) expf(x)  // glibc has functions of these names, which it may not export
#define __logf(x) logf(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __powf(x, y) powf(x, y)
#define CUDART_INF_F __builtin_inff()
#define CUDART_INF __builtin_inf()

// ---------------------------------------------------------------------------------------------
// How the emulator calls a kernel: with pointers to its arguments.

template <class... A, size_t... I>
__attribute__((no_sanitize("thread")))
static void minipar_apply(void (*kernel)(A...), void **a, std::index_sequence<I...>) {
    kernel(*(std::remove_cv_t<A> *)a[I]...);
}
template <class... A>
__attribute__((no_sanitize("thread"))) static void minipar_apply(void (*kernel)(A...), void **a) {
    minipar_apply(kernel, a, std::index_sequence_for<A...>());
}
#define KERNEL(name)                                                                              \
    extern "C" __attribute__((visibility("default"), no_sanitize("thread")))                      \
    void minipar_kernel_##name(void **arguments) { minipar_apply(name, arguments); }
