// Stands for CUDA's <mma.h> in the emulator: every lane holds a whole fragment, and lane 0 stores it.
#pragma once
namespace nvcuda {
namespace wmma {
struct matrix_a; struct matrix_b; struct accumulator; struct row_major;
namespace precision { struct tf32; }
enum layout_t { mem_row_major };

template <class T> struct Held { typedef T type; };
template <> struct Held<precision::tf32> { typedef float type; };
template <class Use, int M, int N, int K> struct Size;
template <int M, int N, int K> struct Size<matrix_a, M, N, K> { enum { ROWS = M, COLUMNS = K }; };
template <int M, int N, int K> struct Size<matrix_b, M, N, K> { enum { ROWS = K, COLUMNS = N }; };
template <int M, int N, int K> struct Size<accumulator, M, N, K> { enum { ROWS = M, COLUMNS = N }; };

template <class Use, int M, int N, int K, class T, class Layout = void> struct fragment {
    enum { ROWS = Size<Use, M, N, K>::ROWS, COLUMNS = Size<Use, M, N, K>::COLUMNS };
    typename Held<T>::type at[ROWS][COLUMNS];
};

template <class F, class T> void fill_fragment(F &f, T value) {
    for (auto &row : f.at)
        for (auto &x : row) x = value;
}

template <class F, class T> void load_matrix_sync(F &f, const T *from, unsigned stride) {
    assert((size_t)from % 32 == 0 && stride * sizeof(T) % 16 == 0);
    for (int i = 0; i < F::ROWS; i++)
        for (int j = 0; j < F::COLUMNS; j++) f.at[i][j] = from[i * stride + j];
}

template <class F, class T> void store_matrix_sync(T *to, const F &f, unsigned stride, layout_t) {
    assert((size_t)to % 32 == 0 && stride * sizeof(T) % 16 == 0);
    if (threadIdx.x % 32 == 0)
        for (int i = 0; i < F::ROWS; i++)
            for (int j = 0; j < F::COLUMNS; j++) to[i * stride + j] = f.at[i][j];
}

template <class C, class A, class B> void mma_sync(C &d, const A &a, const B &b, const C &c) {
    for (int i = 0; i < C::ROWS; i++)
        for (int j = 0; j < C::COLUMNS; j++) {
            auto sum = c.at[i][j];
            for (int k = 0; k < A::COLUMNS; k++) sum += a.at[i][k] * b.at[k][j];
            d.at[i][j] = sum;
        }
}

// To the nearest number with 10 bits after the point, halves away from 0.
inline float __float_to_tf32(float x) {
    unsigned bits;
    __builtin_memcpy(&bits, &x, 4);
    bits = (bits + 0x1000) & 0xffffe000u;
    __builtin_memcpy(&x, &bits, 4);
    return x;
}
}
}
