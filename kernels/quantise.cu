// Quantisation of what is sent over slow links: 8 or 4 bits a number with one scale a block
// (Alistarh, Grubic, Li, Tomioka, Vojnovic 2017, "QSGD"; here rounded, not drawn), or signs with
// one scale in all (Karimireddy, Rebjock, Stich, Jaggi 2019, "Error feedback fixes SignSGD").
// With error feedback, what rounding takes from a number is added to the number of the next call:
//
//     y = x + residual          residual = y - what the receiver makes of it
//
// Memory-bound: a pass for the scale, and a second one. Bytes that a float32 costs, read and
// written, and what it is sent as:
//
//                   quantise    with feedback    dequantise    sent
//     8 bits         4 + 1          8 + 5           1 + 4      1 byte, and 4 a block
//     4 bits         4 + 1/2        8 + 4 1/2     1/2 + 4      1/2
//     signs          8 + 1/8       16 + 4 1/8     1/8 + 4      1/8
//
// (8 bits and 4: a block of up to some thousands is still in the cache in the second pass; for
// signs, all numbers are read twice. The naive way, an array operation at a time, moves 40.)
//
// Every operation rounds once, and sums have an order of their own: the same bits in every
// execution and on every rank.
#include "lanes.cuh"

typedef signed char int8;

// The bits of a number as an integer, and back.
#ifdef MINIPAR_HOST
INLINE int32 to_bits(float x) { return bits_of<int32>(x); }
INLINE int64 to_bits(double x) { return bits_of<int64>(x); }
INLINE float from_bits(int32 x) { return bits_of<float>(x); }
INLINE double from_bits(int64 x) { return bits_of<double>(x); }
INLINE float round_(float x) { return __builtin_rintf(x); }  // halves to the even one
INLINE double round_(double x) { return __builtin_rint(x); }
INLINE float times(float a, float b) { return a * b; }
INLINE double times(double a, double b) { return a * b; }
#else
__device__ __forceinline__ int32 to_bits(float x) { return __float_as_int(x); }
__device__ __forceinline__ int64 to_bits(double x) { return __double_as_longlong(x); }
__device__ __forceinline__ float from_bits(int32 x) { return __int_as_float(x); }
__device__ __forceinline__ double from_bits(int64 x) { return __longlong_as_double(x); }
__device__ __forceinline__ float round_(float x) { return rintf(x); }
__device__ __forceinline__ double round_(double x) { return rint(x); }
// A product that is not joined with the subtraction after it: the receiver rounds it too.
__device__ __forceinline__ float times(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double times(double a, double b) { return __dmul_rn(a, b); }
#endif

// The smallest normal number: a quotient of subnormal ones would not be accurate. The largest but
// one: the largest / LEVELS * LEVELS may be rounded to infinity.
constexpr acc SMALLEST = acc(sizeof(acc) == 4 ? 0x1p-126 : 0x1p-1022);
constexpr acc LARGEST = acc(sizeof(acc) == 4 ? 0x1.fffffcp127 : 0x1.ffffffffffffep1023);

static __device__ __forceinline__ bool finite_(acc x) { return x - x == 0; }

// Elements of x, with what is owed to them.
template <bool FEEDBACK> struct Input {
    const real *x;
    acc *residual;
    __device__ __forceinline__ acc operator()(int64 i) const {
        return FEEDBACK ? acc(x[i]) + residual[i] : acc(x[i]);
    }
    __device__ __forceinline__ Input from(int64 i) const { return {x + i, residual + i}; }
};

// The scale of the numbers y of a block: the largest magnitude / LEVELS, in the bounds above; 0 if
// all are 0; not finite if one is not. Magnitudes are compared as integers, which have the same
// order, and as which NaN is above infinity.
template <int LEVELS, class Y> static __device__ __forceinline__ acc block_scale(int64 n, Y y) {
    auto top = block_reduce(n, to_bits(acc(0)), [&](int64 i) { return to_bits(abs_(y(i))); },
                            Larger());
    acc scale = from_bits(top) / acc(LEVELS), most = LARGEST / acc(LEVELS);
    if (top == 0 || !finite_(scale)) return scale;
    return scale < SMALLEST ? SMALLEST : scale > most ? most : scale;
}

// write(count, level) for each block of `size` elements of n, where level(i) is what the block's
// element i becomes, -LEVELS to LEVELS; it is called once for each, and updates the residual.
// A block that cannot be told in numbers has levels 0, and its residual stays as it was.
template <int LEVELS, bool FEEDBACK, class Write>
static __device__ __forceinline__ void each_block(Input<FEEDBACK> all, acc *scales, int64 rows,
                                                  int64 size, int64 n, Write write) {
    for (int64 row = blockIdx.x; row < rows; row += gridDim.x) {
        Input<FEEDBACK> y = all.from(row * size);
        int64 count = n - row * size < size ? n - row * size : size;
        acc scale = block_scale<LEVELS>(count, y);
        if (threadIdx.x == 0) scales[row] = scale;
        if (!finite_(scale)) {
            write(row, count, [](int64) { return 0; });
            continue;
        }
        acc divisor = scale == 0 ? acc(1) : scale;
        write(row, count, [=](int64 i) {
            acc number = y(i), level = round_(number / divisor);
            if (FEEDBACK) y.residual[i] = number - times(level, scale);
            return int32(level);
        });
    }
}

// q = round(x / scale), |q| <= 127: one byte a number.
template <bool FEEDBACK>
static __device__ __forceinline__ void to_8_bits(Input<FEEDBACK> x, int8 *q, acc *scales,
                                                 int64 rows, int64 size, int64 n) {
    each_block<127>(x, scales, rows, size, n, [=](int64 row, int64 count, auto level) {
        int8 *out = q + row * size;
        block_each(count, [=](int64 i) { out[i] = int8(level(i)); });
    });
}

// |q| <= 7, in two's complement: two numbers a byte, the first in the lower half. `size` is even.
template <bool FEEDBACK>
static __device__ __forceinline__ void to_4_bits(Input<FEEDBACK> x, uint8 *q, acc *scales,
                                                 int64 rows, int64 size, int64 n) {
    each_block<7>(x, scales, rows, size, n, [=](int64 row, int64 count, auto level) {
        uint8 *out = q + row * (size / 2);
        block_each(count / 2, [=](int64 i) {
            out[i] = uint8((level(2 * i) & 15) | (level(2 * i + 1) & 15) << 4);
        });
        if (count % 2 && threadIdx.x == 0) out[count / 2] = uint8(level(count - 1) & 15);
    });
}

__global__ void quantise_8(const real *x, int8 *q, acc *scales, int64 rows, int64 size, int64 n) {
    to_8_bits(Input<false>{x, nullptr}, q, scales, rows, size, n);
}

__global__ void quantise_8_feedback(const real *x, acc *residual, int8 *q, acc *scales, int64 rows,
                                    int64 size, int64 n) {
    to_8_bits(Input<true>{x, residual}, q, scales, rows, size, n);
}

__global__ void quantise_4(const real *x, uint8 *q, acc *scales, int64 rows, int64 size, int64 n) {
    to_4_bits(Input<false>{x, nullptr}, q, scales, rows, size, n);
}

__global__ void quantise_4_feedback(const real *x, acc *residual, uint8 *q, acc *scales,
                                    int64 rows, int64 size, int64 n) {
    to_4_bits(Input<true>{x, residual}, q, scales, rows, size, n);
}

// y = q scale. Where the scale is not finite, NaN.
__global__ void dequantise_8(const int8 *q, const acc *scales, real *y, int64 rows, int64 size,
                             int64 n) {
    for (int64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const int8 *from = q + row * size;
        real *out = y + row * size;
        acc scale = scales[row];
        block_each(n - row * size < size ? n - row * size : size,
                   [=](int64 i) { out[i] = real(acc(from[i]) * scale); });
    }
}

__global__ void dequantise_4(const uint8 *q, const acc *scales, real *y, int64 rows, int64 size,
                             int64 n) {
    for (int64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const uint8 *from = q + row * (size / 2);
        real *out = y + row * size;
        acc scale = scales[row];
        int64 count = n - row * size < size ? n - row * size : size;
        auto value = [=](int32 half) { return real(acc((half ^ 8) - 8) * scale); };
        block_each(count / 2, [=](int64 i) {
            out[2 * i] = value(from[i] & 15);
            out[2 * i + 1] = value(from[i] >> 4);
        });
        if (count % 2 && threadIdx.x == 0) out[count - 1] = value(from[count / 2] & 15);
    }
}

// partial (rows, 64) = the sums of the magnitudes of each 4096 elements, in double: sum j is of
// elements j, j + 64, ..., one after another, in every execution. (64 sums wait for each other
// as little as 1 on a CPU, and are a thread each on a GPU.)
template <bool FEEDBACK>
static __device__ __forceinline__ void sum_magnitudes(Input<FEEDBACK> all, double *partial,
                                                      int64 rows, int64 n) {
    for (int64 row = blockIdx.x; row < rows; row += gridDim.x) {
        Input<FEEDBACK> y = all.from(row * 4096);
        int64 count = n - row * 4096 < 4096 ? n - row * 4096 : 4096, whole = count / 64 * 64;
        block_lanes(64, [&](int64 start, auto each) {
            double sum[LANES] = {};
            for (int64 i = start; i < whole; i += 64)
                each([&](int j) { sum[j] += double(abs_(y(i + j))); });
            for (int j = 0; j < LANES; j++)
                if (whole + start + j < count) sum[j] += double(abs_(y(whole + start + j)));
            each([&](int j) { partial[row * 64 + start + j] = sum[j]; });
        });
    }
}

__global__ void magnitudes(const real *x, double *partial, int64 rows, int64 n) {
    sum_magnitudes(Input<false>{x, nullptr}, partial, rows, n);
}

__global__ void magnitudes_feedback(const real *x, acc *residual, double *partial, int64 rows,
                                    int64 n) {
    sum_magnitudes(Input<true>{x, residual}, partial, rows, n);
}

// Eight numbers a byte, the first in the lowest bit: 1 where a number is below 0. The bits after
// the last one are 0. Rows of 4096, as above. Without a finite scale, residuals stay as they were.
template <bool FEEDBACK>
static __device__ __forceinline__ void to_signs(Input<FEEDBACK> all, uint8 *bits, acc scale,
                                                int64 rows, int64 n) {
    for (int64 row = blockIdx.x; row < rows; row += gridDim.x) {
        Input<FEEDBACK> y = all.from(row * 4096);
        uint8 *out = bits + row * 512;
        int64 count = n - row * 4096 < 4096 ? n - row * 4096 : 4096;
        auto pack = [=](int64 first, int numbers) {
            int32 byte = 0;
            UNROLL
            for (int j = 0; j < numbers; j++) byte |= int32(y(first + j) < 0) << j;
            return uint8(byte);
        };
        block_each(count / 8, [=](int64 i) { out[i] = pack(8 * i, 8); });
        if (count % 8 && threadIdx.x == 0) out[count / 8] = pack(count / 8 * 8, int(count % 8));
        if (!FEEDBACK || !finite_(scale)) continue;
        __syncthreads();  // a number is read for its bit, and then changed by another thread
        block_each(count, [=](int64 i) {
            acc number = y(i);
            y.residual[i] = number - (number < 0 ? -scale : scale);
        });
    }
}

__global__ void pack_signs(const real *x, uint8 *bits, acc scale, int64 rows, int64 n) {
    to_signs(Input<false>{x, nullptr}, bits, scale, rows, n);
}

__global__ void pack_signs_feedback(const real *x, acc *residual, uint8 *bits, acc scale,
                                    int64 rows, int64 n) {
    to_signs(Input<true>{x, residual}, bits, scale, rows, n);
}

// y = -scale where the bit is 1, else scale. A thread's LANES begin with a byte, or are one bit.
__global__ void unpack_signs(const uint8 *bits, real *y, acc scale, int64 n) {
    all_lanes(n, [&](int64 start, auto each) {
        uint32 word = 0;
        for (int j = 0; j < LANES && start + j < n; j += 8)
            word |= uint32(bits[(start + j) / 8]) << j;
        word >>= start % 8;
        each([&](int j) { y[start + j] = real(word >> j & 1 ? -scale : scale); });
    });
}
