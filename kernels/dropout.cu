// Dropout: which elements are kept, from a counter-based generator, and the scaling by it.
//
// Philox-4x64-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"):
// a function from a counter of 256 bits and a key of 128 to 256 random bits, here eight numbers of
// 32. No state: any thread computes any stretch, and a cut of the batch changes no mask.
#include "common.cuh"

// The upper 64 bits of a product. On a CPU from four products of 32 bits, which it can vectorise.
static __device__ __forceinline__ uint64 high_product(uint64 a, uint64 b) {
#ifdef MINIPAR_HOST
    uint64 a0 = uint32(a), a1 = a >> 32, b0 = uint32(b), b1 = b >> 32;
    uint64 middle = a1 * b0 + (a0 * b0 >> 32);
    uint64 other = a0 * b1 + uint32(middle);
    return a1 * b1 + (middle >> 32) + (other >> 32);
#else
    return __umul64hi(a, b);
#endif
}

// For each block of eight numbers, numbered from `first`: bytes 1 where a number is at least
// `threshold`, else 0. (The first in the lowest byte: little-endian, as the generator's words.)
__global__ void keep_mask(uint64 *mask, uint64 key0, uint64 key1, uint64 first, uint32 threshold,
                          int64 count) {
    for_each(count, [&](int64 i) {
        // NumPy counts up before each block.
        uint64 c0 = first + uint64(i) + 1, c1 = 0, c2 = 0, c3 = 0, k0 = key0, k1 = key1;
        UNROLL
        for (int round = 0; round < 10; round++) {
            const uint64 m0 = 0xD2E7470EE14C6C93ull, m1 = 0xCA5A826395121157ull;
            uint64 high0 = high_product(m0, c0), low0 = m0 * c0;
            uint64 high1 = high_product(m1, c2), low1 = m1 * c2;
            c0 = high1 ^ c1 ^ k0, c1 = low1;
            c2 = high0 ^ c3 ^ k1, c3 = low0;
            k0 += 0x9E3779B97F4A7C15ull, k1 += 0xBB67AE8584CAA73Bull;
        }
        uint64 kept = 0, word[4] = {c0, c1, c2, c3};
        for (int w = 0; w < 4; w++) {
            kept |= uint64(uint32(word[w]) >= threshold) << 16 * w;
            kept |= uint64(uint32(word[w] >> 32) >= threshold) << (16 * w + 8);
        }
        mask[i] = kept;
    });
}

// y = x * scale where the mask is 1, and x * 0 where it is 0: NaN if x is NaN or infinite.
__global__ void masked_scale(const real *x, const uint8 *mask, real *y, acc scale, int64 n) {
    for_each(n, [&](int64 i) { y[i] = real(acc(x[i]) * (acc(mask[i]) * scale)); });
}
