// CUDA's words on a CPU, one thread a block: what a kernel needs to be an ordinary C++ function.
#pragma once
#include <cstdint>

#define INLINE inline __attribute__((always_inline))
#define __global__ static
#define __device__
#define __forceinline__ INLINE
#define __launch_bounds__(...)
#define VECTOR _Pragma("omp simd simdlen(16)")  // the loop after it: 16 steps side by side
#define UNROLL _Pragma("GCC unroll 16")  // the loop after it: written out, up to 16 steps
#define PREFETCH(address) __builtin_prefetch(address)
#define HUGE __builtin_inff()
#include "half.h"
#undef __shared__
#define __shared__ static thread_local
#define __syncthreads() ((void)0)
#define __syncwarp(...) ((void)0)

struct Dim { unsigned x, y, z; };
static constexpr Dim threadIdx = {0, 0, 0}, blockDim = {1, 1, 1};
static thread_local Dim blockIdx = {0, 0, 0}, gridDim = {1, 1, 1};
