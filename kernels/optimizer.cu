// Steps of optimizers over flat memory, and the sum of squares that clipping needs.
//
// Each element is updated by itself from its gradient and its state, so that a step reads and
// writes every array once: memory-bound. Of an element, in float32: bytes, and operations with
// weight decay:
//
//     sgd 12, 5    sgd_momentum 20, 8    adam 28, 17    amsgrad 36, 18    sum_of_squares 4, 2
//
// The naive way, one operation after another over whole arrays, moves 112 bytes for adam.
//
// `scale` multiplies the gradient as it is read (1 / count, clipping, -1 to maximise); what depends
// on the step alone is worked out once, by the caller. Sums that fma_ rounds once, quotients and
// roots are the same bits in every execution and wherever the memory was cut. Where parameter,
// gradient and state are 0, as between the parameters in flat memory, they stay 0 (eps > 0).
#include "common.cuh"

// p -= lr g, where g = scale grad + decay p
__global__ void sgd(real *p, const real *grad, int64 n, acc scale, acc decay, acc lr) {
    for_each(n, [=](int64 i) {
        acc w = acc(p[i]), g = scale * acc(grad[i]);
        if (decay != 0) g = fma_(decay, w, g);  // 0 times infinity would be NaN
        p[i] = real(fma_(-lr, g, w));
    });
}

// v = momentum v + fresh g;  p -= lr v, or lr (g + momentum v) by Nesterov.
__global__ void sgd_momentum(real *p, const real *grad, real *v, int64 n, acc scale, acc decay,
                             acc lr, acc momentum, acc fresh, int32 nesterov) {
    for_each(n, [=](int64 i) {
        acc w = acc(p[i]), g = scale * acc(grad[i]);
        if (decay != 0) g = fma_(decay, w, g);
        acc speed = fma_(fresh, g, momentum * acc(v[i]));
        v[i] = real(speed);
        acc d = nesterov ? fma_(momentum, speed, g) : speed;
        p[i] = real(fma_(-lr, d, w));
    });
}

// Adam and AdamW, of one element.
//
//     m = beta1 m + fresh1 g         v = beta2 v + (fresh2 g)^2        fresh1 = 1 - beta1
//     p -= rate m / (sqrt(v) + eps) + shrink p                         fresh2 = sqrt(1 - beta2)
//
// The corrections of the first steps, 1 - beta^step, are in rate and eps. decay: weight decay in
// the gradient (Adam). shrink: lr times weight decay (AdamW). LARGEST: the largest v so far takes
// its place (AMSGrad).
template <bool LARGEST>
static __device__ __forceinline__ void adam_step(
        real *p, const real *grad, real *m, real *v, real *largest, int64 n, acc scale, acc decay,
        acc shrink, acc beta1, acc fresh1, acc beta2, acc fresh2, acc eps, acc rate) {
    for_each(n, [=](int64 i) {
        acc w = acc(p[i]), g = scale * acc(grad[i]);
        if (decay != 0) g = fma_(decay, w, g);
        acc first = fma_(fresh1, g, beta1 * acc(m[i])), h = fresh2 * g;
        acc second = fma_(h, h, beta2 * acc(v[i]));
        m[i] = real(first);
        v[i] = real(second);
        if (LARGEST) {
            acc top = acc(largest[i]);
            second = second > top || second != second ? second : top;  // NaN is largest
            largest[i] = real(second);
        }
        acc d = rate * (first / (sqrt_(second) + eps));
        if (shrink != 0) d = fma_(shrink, w, d);
        p[i] = real(w - d);
    });
}

__global__ void adam(real *p, const real *grad, real *m, real *v, int64 n, acc scale, acc decay,
                     acc shrink, acc beta1, acc fresh1, acc beta2, acc fresh2, acc eps, acc rate) {
    adam_step<false>(p, grad, m, v, v, n, scale, decay, shrink, beta1, fresh1, beta2, fresh2, eps,
                     rate);
}

__global__ void amsgrad(real *p, const real *grad, real *m, real *v, real *largest, int64 n,
                        acc scale, acc decay, acc shrink, acc beta1, acc fresh1, acc beta2,
                        acc fresh2, acc eps, acc rate) {
    adam_step<true>(p, grad, m, v, largest, n, scale, decay, shrink, beta1, fresh1, beta2, fresh2,
                    eps, rate);
}

// partial[b] = the sum of the squares of the elements [4096 b, 4096 (b + 1)), in double: what the
// caller makes of the partial sums does not depend on how many blocks there were.
__global__ void sum_of_squares(const real *x, double *partial, int64 rows, int64 n) {
    for (int64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const real *a = x + row * 4096;
        int64 left = n - row * 4096;
        double sum = block_reduce(left < 4096 ? left : 4096, 0., [=](int64 i) {
            double z = double(acc(a[i]));
            return z * z;
        }, Add());
        if (threadIdx.x == 0) partial[row] = sum;
    }
}
