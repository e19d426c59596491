// A thread that takes several neighbouring elements side by side: as many as fill the vectors of
// a CPU, one on a GPU, whose warps have neighbouring threads instead. What it knows of them stands
// in arrays of LANES, which become registers.
#pragma once
#include "common.cuh"

constexpr int LANES = PER_THREAD(32, 1);

// f(j) for every lane, or for the first ones.
struct AllLanes {
    template <class F> __device__ __forceinline__ void operator()(F f) const {
        VECTOR
        for (int j = 0; j < LANES; j++) f(j);
    }
};
struct SomeLanes {
    int count;
    template <class F> __device__ __forceinline__ void operator()(F f) const {
        VECTOR
        for (int j = 0; j < LANES; j++)
            if (j < count) f(j);
    }
};

// f(start, each) for the `LANES` elements, of n, from `start` on.
template <class F> static __device__ __forceinline__ void lanes_from(int64 start, int64 n, F f) {
    if (n - start >= LANES)
        f(start, AllLanes());
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
