// Cross-entropy of rows of logits with class indices, fused with log-softmax, and its gradient.
//
// Bytes: the loss alone reads x once (n). With the gradient, which is all but known once e^x is,
// one more write (2 n): going back has then nothing to do but to scale, which it seldom has to.
// Log-softmax, the choice of one element and their two gradients are 9 n.
#include "common.cuh"

// Rows that a block takes through each step together, as in softmax.cu; long ones it takes one by
// one, so that the second step finds them cached.
constexpr int TOGETHER = PER_THREAD(16, 1);
static __device__ __forceinline__ int rows_together(int64 n) { return n > 4096 ? 1 : TOGETHER; }

// The logarithm of the sum of e^(x - max) of `count` rows, and the maximum; each e^(x - max) is
// handed to keep(row, column, e).
template <class F>
static __device__ __forceinline__ void log_sums(const real *x, int count, int64 n, acc *top,
                                                acc *sum, acc *log_sum, F keep) {
    for (int r = 0; r < count; r++)
        top[r] = block_max(n, [&](int64 i) { return acc(x[r * n + i]); });
    for (int r = 0; r < count; r++) {
        const real *a = x + r * n;
        acc t = top[r];
        sum[r] = block_sum(n, [&](int64 i) {
            acc e = exp_below0(acc(a[i]) - t);
            keep(r, i, e);
            return e;
        });
    }
    VECTOR
    for (int r = 0; r < TOGETHER; r++) log_sum[r] = log_(sum[r]);
}

// loss = log(sum of e^(x - max)) - (x[target] - max), or 0 where the target is below 0: ignored
__global__ void cross_entropy(const real *x, const int64 *target, real *loss, int64 rows,
                              int64 n) {
    int64 most = rows_together(n);
    for (int64 first = blockIdx.x * most; first < rows; first += gridDim.x * most) {
        int count = int(rows - first < most ? rows - first : most);
        acc top[TOGETHER] = {}, sum[TOGETHER] = {}, log_sum[TOGETHER];
        log_sums(x + first * n, count, n, top, sum, log_sum, [](int, int64, acc) {});
        for (int r = threadIdx.x; r < count; r += blockDim.x) {
            int64 row = first + r, t = target[row];
            loss[row] = t < 0 ? real(0) : real(log_sum[r] - (acc(x[row * n + t]) - top[r]));
        }
    }
}

// The same, and gx = (softmax - one_hot(target)) scale, or 0 where the target is ignored.
__global__ void cross_entropy_gradient(const real *x, const int64 *target, real *loss, real *gx,
                                       acc scale, int64 rows, int64 n) {
    int64 most = rows_together(n);
    for (int64 first = blockIdx.x * most; first < rows; first += gridDim.x * most) {
        int count = int(rows - first < most ? rows - first : most);
        real *out = gx + first * n;
        acc top[TOGETHER] = {}, sum[TOGETHER] = {}, log_sum[TOGETHER];
        log_sums(x + first * n, count, n, top, sum, log_sum,
                 [&](int r, int64 i, acc e) { out[r * n + i] = real(e); });
        for (int r = 0; r < count; r++) {
            int64 t = target[first + r];
            acc s = t < 0 ? acc(0) : scale, factor = s / sum[r];
            block_each(n, [&](int64 i) { out[r * n + i] = real(acc(out[r * n + i]) * factor); });
            __syncthreads();
            if (threadIdx.x == 0) {
                loss[first + r] = real(0);
                if (t >= 0) {
                    loss[first + r] = real(log_sum[r] - (acc(x[(first + r) * n + t]) - top[r]));
                    out[r * n + t] = real(acc(out[r * n + t]) - s);
                }
            }
        }
    }
}
