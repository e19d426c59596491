// 16-bit numbers on a CPU: for storing, while what is computed is float. One place says how they
// are read and rounded, for kernels compiled and emulated; on a GPU CUDA's own types do.
//
// Without branches, tables or instructions of some CPUs only: a loop over them is vectorised. To
// the nearest number, of two the even one; NaN stays NaN; arithmetic on subnormals, which is slow
// on many CPUs, is not needed.
#pragma once
#include <cstdint>

struct half {  // IEEE 754: 1 sign, 5 exponent, 10 mantissa
    uint16_t bits;
    half() = default;

    explicit INLINE half(float x) {
        uint32_t u = __builtin_bit_cast(uint32_t, x), a = u & 0x7fffffff;
        // Below 2^-14: beside 1/2, the last place of a float is 2^-24, half's smallest number.
        uint32_t kept = a < 0x33000000 ? 0 : a;  // below 2^-25 it is 0
        float sum = __builtin_bit_cast(float, kept) + 0.5f;
        uint32_t small = __builtin_bit_cast(uint32_t, sum) - 0x3f000000;
        uint32_t normal = (a - (112u << 23) + 0xfff + (a >> 13 & 1)) >> 13;
        uint32_t large = a > 0x7f800000 ? 0x7e00 : 0x7c00;  // from 2^16 on; NaN
        uint32_t m = a < 113u << 23 ? small : normal;
        bits = uint16_t((a < 143u << 23 ? m : large) | (u >> 16 & 0x8000));
    }

    INLINE operator float() const {
        uint32_t m = bits & 0x7fff, sign = uint32_t(bits & 0x8000) << 16;
        uint32_t normal = (m << 13) + ((m < 0x7c00 ? 112u : 224u) << 23);  // Inf and NaN: 255
        uint32_t small = __builtin_bit_cast(uint32_t, float(int(m)) * 0x1p-24f);
        return __builtin_bit_cast(float, (m < 0x400 ? small : normal) | sign);
    }
};

struct bfloat16 {  // the upper half of a float
    uint16_t bits;
    bfloat16() = default;

    explicit INLINE bfloat16(float x) {
        uint32_t u = __builtin_bit_cast(uint32_t, x);
        uint32_t rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
        bits = uint16_t((u & 0x7fffffff) > 0x7f800000 ? u >> 16 | 0x40 : rounded);
    }

    INLINE operator float() const {
        return __builtin_bit_cast(float, uint32_t(bits) << 16);
    }
};
