// As barriers.cu: bounds, initialisation, atomic operations, blocks. Arrays have 64 elements.
#include <cuda_runtime.h>
#include <assert.h>

__global__ void shared_off_by_one(const float *x, float *y) {
    __shared__ float s[64], t[64];
    s[threadIdx.x + 1] = x[threadIdx.x];  // ! shared_off_by_one
    t[threadIdx.x] = 0;
    __syncthreads();
    y[threadIdx.x] = s[63 - threadIdx.x] + t[threadIdx.x];
}
__global__ void shared_off_by_one_fixed(const float *x, float *y) {
    __shared__ float s[65], t[64];
    s[threadIdx.x + 1] = x[threadIdx.x];
    t[threadIdx.x] = 0;
    __syncthreads();
    y[threadIdx.x] = s[64 - threadIdx.x] + t[threadIdx.x];
}

__global__ void dynamic_off_by_one(const float *x, float *y) {
    extern __shared__ float d[];
    d[threadIdx.x + 1] = x[threadIdx.x];  // ! dynamic_off_by_one
}
__global__ void dynamic_off_by_one_fixed(const float *x, float *y) {
    extern __shared__ float d[];
    d[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = d[63 - threadIdx.x];
}

__global__ void uninitialised(const float *x, float *y) {
    __shared__ float partial[32];
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x[threadIdx.x];
    __syncthreads();
    float sum = 0;
    for (int w = 0; w < 32; w++) sum += partial[w];  // ! uninitialised
    y[threadIdx.x] = sum;
}
__global__ void uninitialised_fixed(const float *x, float *y) {
    __shared__ float partial[32];
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x[threadIdx.x];
    __syncthreads();
    float sum = 0;
    for (int w = 0; w < blockDim.x / 32; w++) sum += partial[w];
    y[threadIdx.x] = sum;
}

// What another block has left in shared memory is no value.
__global__ void left_by_another_block(const float *x, float *y) {
    __shared__ float s;
    if (blockIdx.x == 0 && threadIdx.x == 0) s = x[0];
    __syncthreads();
    if (blockIdx.x == 0 && threadIdx.x == 0) y[0] = s;
    if (blockIdx.x == 1 && threadIdx.x == 0) y[1] = s;  // ! left_by_another_block
}
__global__ void left_by_another_block_fixed(const float *x, float *y) {
    __shared__ float s;
    if (threadIdx.x == 0) s = x[0];
    __syncthreads();
    if (threadIdx.x == 0) y[blockIdx.x] = s;
}

__global__ void global_out_of_bounds(const float *x, float *y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= 64) y[i] = 1;  // ! global_out_of_bounds
}
__global__ void global_out_of_bounds_fixed(const float *x, float *y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < 64) y[i] = 1;
}

__global__ void null_pointer(const float *x, float *y) {
    float *p = x[threadIdx.x] > 1e30f ? y : nullptr;
    p[threadIdx.x] = 1;  // ! null_pointer
}
__global__ void null_pointer_fixed(const float *x, float *y) {
    float *p = x[threadIdx.x] > 1e30f ? nullptr : y;
    if (blockIdx.x == 0) p[threadIdx.x] = 1;
}

__global__ void atomics_missing(const float *x, float *y) {
    y[(int)x[threadIdx.x] % 4] += 1;  // ! atomics_missing
}
__global__ void atomics_missing_fixed(const float *x, float *y) {
    atomicAdd(&y[(int)x[threadIdx.x] % 4], 1);
}

// One thread a block, but the blocks are not one.
__global__ void atomics_missing_between_blocks(const float *x, float *y) {
    if (threadIdx.x == 0) *y += x[0];  // ! atomics_missing_between_blocks
}
__global__ void atomics_missing_between_blocks_fixed(const float *x, float *y) {
    if (threadIdx.x == 0) atomicAdd(y, x[0]);
}

// An atomic addition, and a plain read of the sum without a barrier.
__global__ void plain_beside_atomic(const float *x, float *y) {
    __shared__ int sum;
    if (threadIdx.x == 0) sum = 0;
    __syncthreads();
    atomicAdd(&sum, 1);  // ! plain_beside_atomic
    y[threadIdx.x] = sum;  // ! plain_beside_atomic
}
__global__ void plain_beside_atomic_fixed(const float *x, float *y) {
    __shared__ int sum;
    if (threadIdx.x == 0) sum = 0;
    __syncthreads();
    atomicAdd(&sum, 1);
    __syncthreads();
    if (blockIdx.x == 0) y[threadIdx.x] = sum;
}

// The last block adds up what all have written: needs a fence before the ticket.
__device__ unsigned tickets;
__device__ float add_up(const float *part) {
    float sum = 0;
    for (int b = 0; b < (int)gridDim.x; b++) sum += part[b];  // ! last_block
    return sum;
}
__global__ void last_block(const float *x, float *y) {
    if (threadIdx.x) return;
    y[blockIdx.x] = x[blockIdx.x];  // ! last_block
    if (atomicInc(&tickets, gridDim.x - 1) == gridDim.x - 1) y[63] = add_up(y);
}
__global__ void last_block_fixed(const float *x, float *y) {
    if (threadIdx.x) return;
    y[blockIdx.x] = x[blockIdx.x];
    __threadfence();
    if (atomicInc(&tickets, gridDim.x - 1) == gridDim.x - 1) y[63] = add_up(y);
}

__global__ void writes_an_input(const float *x, float *y) {
    if (threadIdx.x == 5) const_cast<float *>(x)[5] = 0;  // ! writes_an_input
}
__global__ void writes_an_input_fixed(const float *x, float *y) {
    if (threadIdx.x == 5 && blockIdx.x == 0) y[5] = x[5];
}

__global__ void misaligned(const float *x, float *y) {
    float4 v = *reinterpret_cast<const float4 *>(x + 1);  // ! misaligned
    if (threadIdx.x + blockIdx.x == 0) y[0] = v.x + v.w;
}
__global__ void misaligned_fixed(const float *x, float *y) {
    float4 v = *reinterpret_cast<const float4 *>(x + 4);
    if (threadIdx.x + blockIdx.x == 0) y[0] = v.x + v.w;
}

// A spin lock that nobody gives back.
__global__ void waits_for_ever(int *lock, float *y) {
    while (atomicCAS(lock, 0, 1)) {}  // ! waits_for_ever
    y[0] += 1;
}
__global__ void waits_for_ever_fixed(int *lock, float *y) {
    while (atomicCAS(lock, 0, 1)) {}
    atomicAdd(y, 1);
    atomicExch(lock, 0);
}

// A lock without fences: what it protects may be seen late.
__global__ void lock_without_fence(int *lock, float *y) {
    while (atomicCAS(lock, 0, 1)) {}
    y[0] += 1;  // ! lock_without_fence
    atomicExch(lock, 0);
}
__global__ void lock_without_fence_fixed(int *lock, float *y) {
    while (atomicCAS(lock, 0, 1)) {}
    __threadfence();
    y[0] += 1;
    __threadfence();
    atomicExch(lock, 0);
}

__device__ int seen[64];
__global__ void device_variable(const float *x, float *y) {
    seen[threadIdx.x / 2] += 1;  // ! device_variable
}
__global__ void device_variable_fixed(const float *x, float *y) {
    seen[threadIdx.x] += 1;
}

__constant__ float table[4] = {1, 2, 3, 4};
__device__ float kept[4];
__global__ void local_of_another_thread(const float *x, float *y) {
    __shared__ float *p;
    float mine = x[threadIdx.x];
    if (threadIdx.x == 0) p = &mine;
    __syncthreads();
    if (threadIdx.x == 1) y[0] = *p;  // ! local_of_another_thread
    __syncthreads();
}
__global__ void local_of_another_thread_fixed(const float *x, float *y) {
    __shared__ float copy;
    float mine = x[threadIdx.x];
    if (threadIdx.x == 0) copy = mine;
    __syncthreads();
    if (threadIdx.x == 1) y[blockIdx.x] = copy + table[threadIdx.x] + kept[threadIdx.x];
}

__global__ void fails_an_assertion(const float *x, float *y) {
    assert(x[threadIdx.x] < 63);  // ! fails_an_assertion
}
__global__ void fails_an_assertion_fixed(const float *x, float *y) {
    assert(x[threadIdx.x] < 64);
}

__global__ void divides_by_zero(const int *x, float *y) {
    if (blockIdx.x == 0) y[threadIdx.x] = 7 / x[threadIdx.x];  // ! divides_by_zero
}
__global__ void divides_by_zero_fixed(const int *x, float *y) {
    if (blockIdx.x == 0 && x[threadIdx.x]) y[threadIdx.x] = 7 / x[threadIdx.x];
}

__global__ void endless_recursion(const float *x, float *y);
__device__ float deeper(const float *x, int n) {
    volatile float local[256];
    local[n % 256] = n < 0 ? 0 : deeper(x, n + 1);
    return local[n % 256] + x[0];
}
__global__ void endless_recursion(const float *x, float *y) { y[0] = deeper(x, 0); }
__global__ void endless_recursion_fixed(const float *x, float *y) {
    y[threadIdx.x] = deeper(x, -1);
}

__global__ void too_much_shared(const float *x, float *y) {
    __shared__ double s[64][100];
    s[threadIdx.x][99] = x[threadIdx.x];
    y[threadIdx.x] = s[threadIdx.x][99];
}
__global__ void too_much_shared_fixed(const float *x, float *y) {
    __shared__ double s[64][96];
    s[threadIdx.x][95] = x[threadIdx.x];
    y[threadIdx.x] = s[threadIdx.x][95];
}

// An 8 x 8 matrix with rows of 9, so that a column lies in different banks.
__global__ void stride_wrong(const float *x, float *y) {
    __shared__ float s[72];
    int row = threadIdx.x / 8, col = threadIdx.x % 8;
    s[row * 9 + col] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = s[col * 8 + row];  // ! stride_wrong
}
__global__ void stride_wrong_fixed(const float *x, float *y) {
    __shared__ float s[72];
    int row = threadIdx.x / 8, col = threadIdx.x % 8;
    s[row * 9 + col] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = s[col * 9 + row];
}

// Which of two results stays is not said.
__global__ void two_results(const float *x, float *y) {
    y[threadIdx.x % 32] = x[threadIdx.x];  // ! two_results
}
__global__ void two_results_fixed(const float *x, float *y) {
    y[threadIdx.x] = x[threadIdx.x];
}

// 32 elements a step, by a block of 64 threads: its second half takes what the first one does.
__global__ void loop_stride_wrong(const float *x, float *y) {
    for (int i = blockIdx.x * 32 + threadIdx.x; i < 64; i += 32)
        y[i] = x[i];  // ! loop_stride_wrong
}
__global__ void loop_stride_wrong_fixed(const float *x, float *y) {
    if (threadIdx.x < 32)
        for (int i = blockIdx.x * 32 + threadIdx.x; i < 64; i += gridDim.x * 32) y[i] = x[i];
}
