// Activation functions, element by element, and their gradients.
//
// Bytes: one number read and one written, a few to 40 operations between. Where the slope of a
// function costs much, `*_slope` writes it beside the value while x is at hand: going back is then
// one product, which is less than a second exponential in the time of a pass over memory.
#include "common.cuh"

// y = x + row for every row of x (rows, n): a bias. y may be x.
__global__ void add_row(const real *x, const real *row, real *y, int64 rows, int64 n) {
    for (int64 i = blockIdx.x; i < rows; i += gridDim.x) {
        const real *a = x + i * n;
        real *out = y + i * n;
        block_each(n, [&](int64 j) { out[j] = real(acc(a[j]) + acc(row[j])); });
    }
}

// y = max(x, 0). NaN passes: it is not below 0.
__global__ void relu_forward(const real *x, real *y, int64 n) {
    for_each(n, [&](int64 i) { y[i] = acc(x[i]) < acc(0) ? real(0) : x[i]; });
}

// gx = g where y is not 0
__global__ void relu_backward(const real *y, const real *g, real *gx, int64 n) {
    for_each(n, [&](int64 i) { gx[i] = acc(y[i]) == acc(0) ? real(0) : g[i]; });
}

// 1 / (1 + e^-x), from e^-|x|, which cannot overflow and keeps small results exact.
static __device__ __forceinline__ acc sigmoid(acc x) {
    acc e = exp_below0(-abs_(x));
    return (x < 0 ? e : acc(1)) / (acc(1) + e);
}

__global__ void sigmoid_forward(const real *x, real *y, int64 n) {
    for_each(n, [&](int64 i) { y[i] = real(sigmoid(acc(x[i]))); });
}

// gx = g y (1 - y)
__global__ void sigmoid_backward(const real *y, const real *g, real *gx, int64 n) {
    for_each(n, [&](int64 i) {
        acc s = acc(y[i]);
        gx[i] = real((acc(1) - s) * s * acc(g[i]));
    });
}

// gx = g (1 - y^2), with y = tanh(x)
__global__ void tanh_backward(const real *y, const real *g, real *gx, int64 n) {
    for_each(n, [&](int64 i) {
        acc t = acc(y[i]);
        gx[i] = real((acc(1) - t * t) * acc(g[i]));
    });
}

// Functions with a slope that is worth keeping: each gives its value, and writes its slope.

// sigmoid(x), and its own slope s (1 - s) without taking a number near 1 from 1.
static __device__ __forceinline__ acc sigmoid(acc x, acc *slope) {
    acc e = exp_below0(-abs_(x)), large = acc(1) / (acc(1) + e), small = e * large;
    *slope = small * large;
    return x < 0 ? small : large;
}

// x s with s = sigmoid(x); slope s + x s'.
struct Silu {
    static __device__ __forceinline__ acc of(acc x, acc *slope) {
        acc ds, s = sigmoid(x, &ds);
        *slope = fma_(x, ds, s);
        return x * s;
    }
};

// x s with s = (1 + tanh u) / 2 = sigmoid(2 u), 2 u = x (a + b x^2); slope s + x s' 2 u'.
struct GeluTanh {
    static __device__ __forceinline__ acc of(acc x, acc *slope) {
        const acc a = acc(1.5957691216057308), b = acc(0.044715) * a;  // sqrt(8 / pi)
        acc square = x * x, ds, s = sigmoid(x * fma_(b, square, a), &ds);
        *slope = fma_(x * ds, fma_(acc(3) * b, square, a), s);
        return x * s;
    }
};

// x c with c the share of the normal distribution below x; slope c + x density(x).
struct GeluNormal {
    static __device__ __forceinline__ acc of(acc x, acc *slope) {
        acc density, above = share_above(abs_(x), &density);
        acc share = x < 0 ? above : acc(1) - above;
        *slope = fma_(x, density, share);
        return x * share;
    }

    // The share of the normal distribution above x >= 0, and its density at x.
    static __device__ __forceinline__ float share_above(float x, float *density) {
        // Of t = 1 / (1 + 0.23 x), divided by e^(-x^2 / 2): fitted over 0 <= x <= 13.5, beyond
        // which float32 has only 0; error 5e-8 of it.
        float t = 1.f / fma_(0.23f, x, 1.f), e = exp_below0(x * x * -0.5f);
        float p = -0.07843162349162795f;
        p = fma_(p, t, 0.290232006251254f);
        p = fma_(p, t, -0.2777312092023161f);
        p = fma_(p, t, 0.30099337170750956f);
        p = fma_(p, t, -0.032566670110855525f);
        p = fma_(p, t, 0.11935183475409647f);
        p = fma_(p, t, 0.08580808302834306f);
        p = fma_(p, t, 0.09237149060601514f);
        p = fma_(p, t, -2.7307237222717884e-05f);
        *density = e * 0.3989422804014327f;
        return p * e;
    }
    static __device__ __forceinline__ double share_above(double x, double *density) {
        *density = exp_(-0.5 * x * x) * 0.3989422804014327;
        return 0.5 * erfc_(x * 0.7071067811865476);
    }
};

template <class Function>
static __device__ __forceinline__ void value(const real *x, real *y, int64 n) {
    for_each(n, [&](int64 i) {
        acc unused;
        y[i] = real(Function::of(acc(x[i]), &unused));
    });
}

template <class Function>
static __device__ __forceinline__ void value_and_slope(const real *x, real *y, real *d, int64 n) {
    for_each(n, [&](int64 i) {
        acc slope;
        y[i] = real(Function::of(acc(x[i]), &slope));
        d[i] = real(slope);
    });
}

__global__ void silu(const real *x, real *y, int64 n) { value<Silu>(x, y, n); }
__global__ void gelu_tanh(const real *x, real *y, int64 n) { value<GeluTanh>(x, y, n); }
__global__ void gelu_none(const real *x, real *y, int64 n) { value<GeluNormal>(x, y, n); }

__global__ void silu_slope(const real *x, real *y, real *slope, int64 n) {
    value_and_slope<Silu>(x, y, slope, n);
}
__global__ void gelu_tanh_slope(const real *x, real *y, real *slope, int64 n) {
    value_and_slope<GeluTanh>(x, y, slope, n);
}
__global__ void gelu_none_slope(const real *x, real *y, real *slope, int64 n) {
    value_and_slope<GeluNormal>(x, y, slope, n);
}
