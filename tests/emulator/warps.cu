// As barriers.cu: votes, shuffles, masks.

// Half a warp shuffles, with a mask that names all of it.
__global__ void lanes_that_never_come(const float *x, float *y) {
    float v = x[threadIdx.x];
    if (threadIdx.x % 32 < 16) v += __shfl_xor_sync(0xffffffff, v, 8);  // ! lanes_that_never_come
    __syncthreads();  // ! lanes_that_never_come
    y[threadIdx.x] = v;
}
__global__ void lanes_that_never_come_fixed(const float *x, float *y) {
    float v = x[threadIdx.x];
    if (threadIdx.x % 32 < 16) v += __shfl_xor_sync(0xffff, v, 8);
    __syncthreads();
    y[threadIdx.x] = v;
}

// The mask leaves the caller out.
__global__ void wrong_mask(const float *x, float *y) {
    y[threadIdx.x] = __shfl_sync(0xffff, x[threadIdx.x], 0);  // ! wrong_mask
}
__global__ void wrong_mask_fixed(const float *x, float *y) {
    y[threadIdx.x] = __shfl_sync(threadIdx.x % 32 < 16 ? 0xffff : 0xffff0000, x[threadIdx.x],
                                 threadIdx.x % 32 < 16 ? 0 : 16);
}

// A lane reads one that is not in the mask.
__global__ void lane_outside_the_mask(const float *x, float *y) {
    if (threadIdx.x % 32 < 16)
        y[threadIdx.x] = __shfl_down_sync(0xffff, x[threadIdx.x], 8);  // ! lane_outside_the_mask
}
__global__ void lane_outside_the_mask_fixed(const float *x, float *y) {
    if (threadIdx.x % 32 < 16)
        y[threadIdx.x] = __shfl_down_sync(0xffff, x[threadIdx.x], 8, 16);
}

// The lanes that a shuffle reads have returned.
__global__ void lanes_that_returned(const float *x, float *y) {
    if (threadIdx.x >= 48) return;
    float v = x[threadIdx.x];
    for (int by = 16; by; by /= 2)
        v += __shfl_xor_sync(0xffffffff, v, by);  // ! lanes_that_returned
    y[threadIdx.x] = v;
}
__global__ void lanes_that_returned_fixed(const float *x, float *y) {
    float v = threadIdx.x < 48 ? x[threadIdx.x] : 0;
    for (int by = 16; by; by /= 2) v += __shfl_xor_sync(0xffffffff, v, by);
    if (threadIdx.x < 48) y[threadIdx.x] = v;
}

// A mask that only names who is here, and a reader of one who is not.
__global__ void active_mask(const float *x, float *y) {
    float v = x[threadIdx.x];
    v += __shfl_xor_sync(__activemask(), v, 1);  // ! active_mask
    y[threadIdx.x] = v;
}
__global__ void active_mask_fixed(const float *x, float *y) {
    float v = x[threadIdx.x];
    unsigned some = __ballot_sync(0xffffffff, v > 0);
    if (v > 0) v += __popc(some & __match_any_sync(some, 1)) - __popc(some);
    y[threadIdx.x] = v;
}

// Some lanes vote while others wait for their warp.
__global__ void two_operations(const float *x, float *y) {
    if (threadIdx.x % 2)
        y[threadIdx.x] = __any_sync(0xffffffff, x[threadIdx.x] > 0);  // ! two_operations
    else
        __syncwarp();  // ! two_operations
}
__global__ void two_operations_fixed(const float *x, float *y) {
    int any = __any_sync(0xffffffff, x[threadIdx.x] > 0);
    if (threadIdx.x % 2) y[threadIdx.x] = any;
    else __syncwarp(0x55555555);
}
