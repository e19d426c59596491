// Rows of a table by index, going back: the gradients of all uses of a row are added to its own.
//
// Bytes: g is read once, and as many rows of the gradient read and written. (Taking rows, forward,
// is copying: the array library's own.)
//
// A row's gradients are added in the order of their positions, by one block alone and in each
// column by one thread: no atomic additions, whose order would change from run to run. Every block
// reads all indices, of which few are its own.
#include "common.cuh"

// gradient[index[i]] += g[i] for i = 0, 1, ... count - 1
__global__ void embedding_backward(const int64 *index, const real *g, real *gradient, int64 count,
                                   int64 rows, int64 width) {
    for (int64 i = 0; i < count; i++) {
        int64 row = index[i];
        if (uint32(row) % gridDim.x != blockIdx.x) continue;  // another block's
        const real *from = g + i * width;
        real *to = gradient + row * width;
        block_each(width, [&](int64 c) { to[c] = real(acc(to[c]) + acc(from[c])); });
    }
}
