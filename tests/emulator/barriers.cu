// Kernels with a planted bug, and their corrected twins (name_fixed). `! name` marks the lines
// that the emulator has to name for the kernel of that name.

// y[i] = x[63 - i], through shared memory.
__global__ void missing_barrier(const float *x, float *y) {
    __shared__ float s[64];
    s[threadIdx.x] = x[threadIdx.x];       // ! missing_barrier
    y[threadIdx.x] = s[63 - threadIdx.x];  // ! missing_barrier
}
__global__ void missing_barrier_fixed(const float *x, float *y) {
    __shared__ float s[64];
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = s[63 - threadIdx.x];
}

// The second barrier of a loop: the next round overwrites what is still being read.
__global__ void missing_second_barrier(const float *x, float *y) {
    __shared__ float s[64];
    for (int r = 0; r < 3; r++) {
        s[threadIdx.x] = x[threadIdx.x] + r;         // ! missing_second_barrier
        __syncthreads();
        y[threadIdx.x] += s[(threadIdx.x + 1) % 64];  // ! missing_second_barrier
    }
}
__global__ void missing_second_barrier_fixed(const float *x, float *y) {
    __shared__ float s[64];
    for (int r = 0; r < 3; r++) {
        s[threadIdx.x] = x[threadIdx.x] + r;
        __syncthreads();
        y[threadIdx.x] += s[(threadIdx.x + 1) % 64];
        __syncthreads();
    }
}

// A barrier in a branch that half of the block takes.
__global__ void barrier_in_a_branch(const float *x, float *y) {
    __shared__ float s[64];
    s[threadIdx.x] = x[threadIdx.x];
    if (threadIdx.x < 32) {
        __syncthreads();  // ! barrier_in_a_branch
        y[threadIdx.x] = s[63 - threadIdx.x];
    }
}
__global__ void barrier_in_a_branch_fixed(const float *x, float *y) {
    __shared__ float s[64];
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    if (threadIdx.x < 32) y[threadIdx.x] = s[63 - threadIdx.x];
}

// One barrier for each branch are two barriers.
__global__ void two_barriers(const float *x, float *y) {
    __shared__ float s[64];
    if (threadIdx.x % 2) {
        s[threadIdx.x] = x[threadIdx.x];
        __syncthreads();  // ! two_barriers
    } else {
        s[threadIdx.x] = -x[threadIdx.x];
        __syncthreads();  // ! two_barriers
    }
    y[threadIdx.x] = s[63 - threadIdx.x];
}
__global__ void two_barriers_fixed(const float *x, float *y) {
    __shared__ float s[64];
    s[threadIdx.x] = threadIdx.x % 2 ? x[threadIdx.x] : -x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = s[63 - threadIdx.x];
}

// The same barrier, reached by two calls.
__device__ __noinline__ void store(float *s, float value) {
    s[threadIdx.x] = value;
    __syncthreads();  // ! barrier_by_two_calls
}
__global__ void barrier_by_two_calls(const float *x, float *y) {
    __shared__ float s[64];
    if (threadIdx.x % 2) store(s, x[threadIdx.x]);  // ! barrier_by_two_calls
    else store(s, -x[threadIdx.x]);                 // ! barrier_by_two_calls
    y[threadIdx.x] = s[63 - threadIdx.x];
}
__global__ void barrier_by_two_calls_fixed(const float *x, float *y) {
    __shared__ float s[64];
    store(s, threadIdx.x % 2 ? x[threadIdx.x] : -x[threadIdx.x]);
    y[threadIdx.x] = s[63 - threadIdx.x];
}

// Threads without work leave before the barrier.
__global__ void early_return(const float *x, float *y) {
    __shared__ float s[64];
    if (threadIdx.x >= 40) return;
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();  // ! early_return
    y[threadIdx.x] = s[39 - threadIdx.x];
}
__global__ void early_return_fixed(const float *x, float *y) {
    __shared__ float s[64];
    if (threadIdx.x < 40) s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    if (threadIdx.x < 40) y[threadIdx.x] = s[39 - threadIdx.x];
}

// A loop whose number of rounds depends on the thread.
__global__ void barrier_in_a_loop(const float *x, float *y) {
    __shared__ float s[64];
    for (int i = threadIdx.x; i < 100; i += 64) {
        s[threadIdx.x] = x[i % 64];
        __syncthreads();  // ! barrier_in_a_loop
        y[threadIdx.x] = s[63 - threadIdx.x];
        __syncthreads();
    }
}
__global__ void barrier_in_a_loop_fixed(const float *x, float *y) {
    __shared__ float s[64];
    for (int i = threadIdx.x; i - (int)threadIdx.x < 100; i += 64) {
        if (i < 100) s[threadIdx.x] = x[i % 64];
        __syncthreads();
        if (i < 100) y[threadIdx.x] = s[63 - threadIdx.x];
        __syncthreads();
    }
}

// A tree of additions in one warp, as it was written for GPUs whose warps ran in lockstep.
__global__ void warp_in_lockstep(const float *x, float *y) {
    __shared__ float s[64];
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    if (threadIdx.x < 32)
        for (int by = 32; by; by /= 2)
            s[threadIdx.x] += s[threadIdx.x + by];  // ! warp_in_lockstep
    __syncthreads();
    y[threadIdx.x] = s[0];
}
__global__ void warp_in_lockstep_fixed(const float *x, float *y) {
    __shared__ float s[64];
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    if (threadIdx.x < 32)
        for (int by = 32; by; by /= 2) {
            float sum = s[threadIdx.x] + s[threadIdx.x + by];
            __syncwarp();
            s[threadIdx.x] = sum;
            __syncwarp();
        }
    __syncthreads();
    y[threadIdx.x] = s[0];
}

// __syncwarp orders one warp, not two.
__global__ void race_between_warps(const float *x, float *y) {
    __shared__ float s[64];
    s[threadIdx.x] = x[threadIdx.x];  // ! race_between_warps
    __syncwarp();
    y[threadIdx.x] = s[63 - threadIdx.x];  // ! race_between_warps
}
__global__ void race_between_warps_fixed(const float *x, float *y) {
    __shared__ float s[64];
    s[threadIdx.x] = x[threadIdx.x];
    __syncwarp();
    y[threadIdx.x] = s[threadIdx.x ^ 31];  // of the same warp
}

// A shuffle is no barrier for memory.
__global__ void shuffle_orders_nothing(const float *x, float *y) {
    __shared__ float s[64];
    s[threadIdx.x] = x[threadIdx.x];  // ! shuffle_orders_nothing
    float v = __shfl_xor_sync(0xffffffff, x[threadIdx.x], 1);
    y[threadIdx.x] = v + s[threadIdx.x ^ 1];  // ! shuffle_orders_nothing
}
__global__ void shuffle_orders_nothing_fixed(const float *x, float *y) {
    __shared__ float s[64];
    s[threadIdx.x] = x[threadIdx.x];
    float v = __shfl_xor_sync(0xffffffff, x[threadIdx.x], 1);
    __syncwarp();
    y[threadIdx.x] = v + s[threadIdx.x ^ 1];
}
