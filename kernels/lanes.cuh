// A thread that takes several neighbouring elements side by side: as many as fill the vectors of
// a CPU, one on a GPU, whose warps have neighbouring threads instead. What it knows of them stands
// in arrays of LANES, which become registers.
#pragma once
#include "common.cuh"

constexpr int LANES = PER_THREAD(32, 1);

// f(j) for every lane, or for the first ones.
template <int COUNT> struct AllLanes {
    template <class F> __device__ __forceinline__ void operator()(F f) const {
        VECTOR
        for (int j = 0; j < COUNT; j++) f(j);
    }
    __device__ __forceinline__ void prefetch(const real *a) const {
        for (int j = 0; j < COUNT; j += 64 / sizeof(real)) PREFETCH(a + j);
    }
};
struct SomeLanes {
    int count;
    template <class F> __device__ __forceinline__ void operator()(F f) const {
        VECTOR
        for (int j = 0; j < LANES; j++)
            if (j < count) f(j);
    }
    __device__ __forceinline__ void prefetch(const real *a) const { PREFETCH(a); }
};

// f(start, each) for the `LANES` elements, of n, from `start` on.
template <class F> static __device__ __forceinline__ void lanes_from(int64 start, int64 n, F f) {
    if (n - start >= LANES)
        f(start, AllLanes<LANES>());
    else
        f(start, SomeLanes{int(n - start)});
}

// The same for all of n, by the threads of a block, or by those of all blocks.
template <class F> static __device__ __forceinline__ void block_lanes(int64 n, F f) {
    for (int64 i = threadIdx.x * LANES; i < n; i += blockDim.x * LANES) lanes_from(i, n, f);
}
template <class F> static __device__ __forceinline__ void all_lanes(int64 n, F f) {
    int64 thread = blockIdx.x * int64(blockDim.x) + threadIdx.x;
    int64 step = gridDim.x * int64(blockDim.x) * LANES;
    for (int64 i = thread * LANES; i < n; i += step) lanes_from(i, n, f);
}

// Strips of columns, for a kernel that goes down the rows of a matrix: memory is read fastest in
// whole rows, so a strip is as wide as there are columns and registers for.
constexpr int STRIP = PER_THREAD(128, 1);

// f(start, each) for all of n columns, by the threads of a block. A strip may begin before the one
// before it ends: what f gives for a column must not depend on how often it is called.
template <class F> static __device__ __forceinline__ void block_strips(int64 n, F f) {
#if defined(MINIPAR_HOST) && !defined(MINIPAR_EMULATED)
    int64 i = 0;
    for (; n - i >= 128; i += 128) f(i, AllLanes<128>());
    if (n - i >= 64) f(i, AllLanes<64>()), i += 64;
    if (n - i >= 48) f(i, AllLanes<48>()), i += 48;
    if (n - i >= 32) f(i, AllLanes<32>()), i += 32;
    if (n - i >= 16) f(i, AllLanes<16>()), i += 16;
    if (n > i && n >= 16)
        f(n - 16, AllLanes<16>());
    else if (n > i)
        f(i, SomeLanes{int(n - i)});
#else
    for (int64 i = threadIdx.x; i < n; i += blockDim.x) f(i, AllLanes<1>());
#endif
}
