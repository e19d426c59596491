// Scaled dot-product attention, softmax(q k' scale) v, and its gradients, without a matrix of all
// scores in memory: tile by tile, with the online softmax (Milakov & Gimelshein 2018; Dao et al.
// 2022, "FlashAttention").
//
// q (queries, dim), k (keys, dim), v (keys, value_dim) of each head may be strided: `strides` has
// (batch, head, row) of each array in turn, counted in numbers; the last dim is contiguous.
//
// Flops for each query and key that it sees: forward 2 (dim + value_dim), backward
// 6 dim + 4 value_dim. Bytes: k and v are read once for each tile of queries. So it is bound by
// arithmetic, and everything below serves one inner loop (`micro`): a small block of results stays
// in registers, and each number that is loaded is used many times.
//
// Tiles of scores lie transposed, (keys, queries): queries are side by side, so that the maximum,
// the sum and the masks of 16 queries are one vector operation each, and nothing but the queries
// has to be transposed. A query's sums go over the keys in order, whatever the tile of queries.
#include "common.cuh"

constexpr int DIM = 128;  // the largest dim and value_dim

#if defined(MINIPAR_HOST) && !defined(MINIPAR_EMULATED)
// A block of results is ROWS x 2 * LANES: two vectors wide, and as many rows as registers hold.
#ifdef __AVX512F__
constexpr int LANES = 64 / sizeof(acc), ROWS = 8;
#elif defined(__AVX__)
constexpr int LANES = 32 / sizeof(acc), ROWS = 4;
#else
constexpr int LANES = 16 / sizeof(acc), ROWS = 4;
#endif
constexpr int QUERIES = 2 * LANES, KEYS = 64, KEYS_BACK = 64;  // of a tile: caches hold them
#else
constexpr int LANES = 1, ROWS = 4;
constexpr int QUERIES = 64 / sizeof(acc), KEYS = 128 / sizeof(acc), KEYS_BACK = 32 / sizeof(acc);
#endif

static __device__ __forceinline__ int least(int64 a, int64 b) { return int(a < b ? a : b); }

// The matrix of one head in an array (batch, heads, rows, columns).
template <class N> struct Matrix {
    N *data;
    int64 stride;
    __device__ __forceinline__ N *row(int64 i) const { return data + i * stride; }
};
template <class N>
static __device__ __forceinline__ Matrix<N> head_of(N *data, const int64 *strides, int64 head,
                                                    int64 heads) {
    return {data + head / heads * strides[0] + head % heads * strides[1], strides[2]};
}

// ROWS x COLUMNS results: sums over `steps` of a(i, step) b(step, j), each given to put(i, j, sum).
template <int COLUMNS, class Put>
static __device__ __forceinline__ void micro(const acc *a, int a_row, int a_step, const acc *b,
                                             int b_step, int steps, Put put) {
    acc sum[ROWS][COLUMNS];
    for (int i = 0; i < ROWS; i++) {
        VECTOR
        for (int j = 0; j < COLUMNS; j++) sum[i][j] = 0;
    }
    for (int step = 0; step < steps; step++, a += a_step, b += b_step)
        for (int i = 0; i < ROWS; i++) {
            VECTOR
            for (int j = 0; j < COLUMNS; j++) sum[i][j] = fma_(a[i * a_row], b[j], sum[i][j]);
        }
    for (int i = 0; i < ROWS; i++) {
        VECTOR
        for (int j = 0; j < COLUMNS; j++) put(i, j, sum[i][j]);
    }
}

// put(i, j, sum over steps of a(i, step) b(step, j)) for i < rows, j < columns; a(i, step) stands
// at a[i * a_row + step * a_step], b(step, j) at b[step * b_step + j]. Rows are rounded up to ROWS
// and columns to LANES: what is read for those has to be memory, and is put too.
template <class Put>
static __device__ __forceinline__ void product(int rows, int columns, int steps, const acc *a,
                                               int a_row, int a_step, const acc *b, int b_step,
                                               Put put) {
    int down = (rows + ROWS - 1) / ROWS, across = (columns + 2 * LANES - 1) / (2 * LANES);
    for (int block = threadIdx.x; block < down * across; block += blockDim.x) {
        int i0 = block % down * ROWS, j0 = block / down * 2 * LANES;
        auto put_here = [&](int i, int j, acc sum) { put(i0 + i, j0 + j, sum); };
        if (columns - j0 > LANES)
            micro<2 * LANES>(a + i0 * a_row, a_row, a_step, b + j0, b_step, steps, put_here);
        else
            micro<LANES>(a + i0 * a_row, a_row, a_step, b + j0, b_step, steps, put_here);
    }
}

// tile[i * columns + j] = from(i, j) * scale
static __device__ __forceinline__ void load(acc *tile, Matrix<const real> from, int64 first,
                                            int rows, int columns, acc scale = 1) {
    for (int i = 0; i < rows; i++) {
        const real *a = from.row(first + i);
        for (int j = threadIdx.x; j < columns; j += blockDim.x) 
            tile[i * columns + j] = acc(a[j]) * scale;
    }
}

// tile[j * QUERIES + i] = from(i, j) * scale
static __device__ __forceinline__ void load_across(acc *tile, Matrix<const real> from, int64 first,
                                                   int rows, int columns, acc scale) {
    for (int i = 0; i < rows; i++) {
        const real *a = from.row(first + i);
        for (int j = threadIdx.x; j < columns; j += blockDim.x)
            tile[j * QUERIES + i] = acc(a[j]) * scale;
    }
}

// to(i, j) = tile[j * QUERIES + i] * scale(i)
template <class Scale>
static __device__ __forceinline__ void store_across(Matrix<real> to, int64 first, int rows,
                                                    int columns, const acc *tile, Scale scale) {
    for (int i = 0; i < rows; i++) {
        real *a = to.row(first + i);
        acc factor = scale(i);
        for (int j = threadIdx.x; j < columns; j += blockDim.x)
            a[j] = real(tile[j * QUERIES + i] * factor);
    }
}

// scores[key][query] = q k' scale of a tile; -infinity where the key stands after the query.
static __device__ __forceinline__ void score(acc *scores, const acc *k, const acc *q,
                                             int n, int dim, bool causal, int64 key, int64 query) {
    int ahead = causal ? int(key - query) : -KEYS;  // key i of the tile is after query j: i + ahead > j
    product(n, QUERIES, dim, k, dim, 1, q, QUERIES, [&](int i, int j, acc sum) {
        scores[i * QUERIES + j] = j < i + ahead ? acc(-HUGE) : sum;
    });
}

// out = softmax(q k' scale) v, and of each row log(sum e^score) for the backward. A query that
// sees no key gets zeros. strides: of q, k, v, out. lse (batch * heads, queries), contiguous.
// rows = batch * heads * queries.
__global__ void attention_forward(const real *q, const real *k, const real *v, real *out, acc *lse,
                                  const int64 *strides, int64 heads, int64 rows, int64 queries,
                                  int64 keys, int32 dim, int32 value_dim, int32 causal, acc scale) {
    alignas(64) __shared__ acc q_tile[DIM * QUERIES];  // (dim, queries)
    alignas(64) __shared__ acc sum_tile[DIM * QUERIES];  // (value_dim, queries): sum of e^.. v
    alignas(64) __shared__ acc kv_tile[KEYS * DIM];  // (keys, dim), then (keys, value_dim)
    alignas(64) __shared__ acc p_tile[KEYS * QUERIES];  // scores, then e^(score - top)
    alignas(64) __shared__ acc top[QUERIES], total[QUERIES], shrink[QUERIES];
    int64 tiles = (queries + QUERIES - 1) / QUERIES;
    for (int64 block = blockIdx.x; block < rows / queries * tiles; block += gridDim.x) {
        int64 head = block / tiles, first = block % tiles * QUERIES;
        auto k_head = head_of(k, strides + 3, head, heads), v_head = head_of(v, strides + 6, head, heads);
        int count = least(QUERIES, queries - first);
        load_across(q_tile, head_of(q, strides, head, heads), first, count, dim, scale);
        for (int j = threadIdx.x; j < value_dim * QUERIES; j += blockDim.x) sum_tile[j] = 0;
        for (int j = threadIdx.x; j < QUERIES; j += blockDim.x) top[j] = -HUGE, total[j] = 0;

        int64 seen = causal ? least(keys, first + count) : keys;
        for (int64 start = 0; start < seen; start += KEYS) {
            int n = least(KEYS, seen - start);
            load(kv_tile, k_head, start, n, dim);
            __syncthreads();
            score(p_tile, kv_tile, q_tile, n, dim, causal, start, first);
            __syncthreads();
            load(kv_tile, v_head, start, n, value_dim);
            // Where a later tile has a larger score, what was summed up before shrinks.
            for (int j0 = threadIdx.x * LANES; j0 < QUERIES; j0 += blockDim.x * LANES) {
                acc high[LANES], sum[LANES], *p = p_tile + j0;
                for (int j = 0; j < LANES; j++) high[j] = top[j0 + j];
                for (int i = 0; i < n; i++) {
                    VECTOR
                    for (int j = 0; j < LANES; j++) high[j] = larger(high[j], p[i * QUERIES + j]);
                }
                VECTOR
                for (int j = 0; j < LANES; j++) {
                    acc before = top[j0 + j];
                    top[j0 + j] = high[j];
                    high[j] = high[j] == -HUGE ? acc(0) : high[j];  // -inf - -inf would be NaN
                    shrink[j0 + j] = exp_(before - high[j]);
                    sum[j] = total[j0 + j] * shrink[j0 + j];
                }
                for (int i = 0; i < n; i++) {
                    VECTOR
                    for (int j = 0; j < LANES; j++) {
                        acc e = exp_(p[i * QUERIES + j] - high[j]);
                        p[i * QUERIES + j] = e;
                        sum[j] += e;
                    }
                }
                for (int j = 0; j < LANES; j++) total[j0 + j] = sum[j];
            }
            __syncthreads();
            product(value_dim, QUERIES, n, kv_tile, 1, value_dim, p_tile, QUERIES,
                    [&](int i, int j, acc sum) {
                acc *o = sum_tile + i * QUERIES + j;
                *o = fma_(*o, shrink[j], sum);
            });
            __syncthreads();
        }
        store_across(head_of(out, strides + 9, head, heads), first, count, value_dim, sum_tile,
                     [&](int i) { return total[i] == 0 ? acc(1) : acc(1) / total[i]; });
        for (int i = threadIdx.x; i < count; i += blockDim.x)
            lse[head * queries + first + i] =
                total[i] == 0 ? acc(0) : top[i] + log_(total[i]);
        __syncthreads();
    }
}

// p[key][query] = e^(score - lse), the probability; on entry ds holds the gradient of p, on return
// that of the score, p (ds - delta).
static __device__ __forceinline__ void slopes(acc *p, acc *ds, const acc *lse, const acc *delta,
                                              int n) {
    for (int at = threadIdx.x * LANES; at < n * QUERIES; at += blockDim.x * LANES) {
        int j0 = at % QUERIES;
        VECTOR
        for (int j = 0; j < LANES; j++) {
            acc e = exp_(p[at + j] - lse[j0 + j]);
            p[at + j] = e;
            ds[at + j] = e * (ds[at + j] - delta[j0 + j]);
        }
    }
}

// to(i, j) += sum over the queries of a tile of a[i][query] b[query][j]
static __device__ __forceinline__ void add_product(Matrix<real> to, int64 first, int rows,
                                                   int columns, int count, const acc *a,
                                                   const acc *b) {
    product(rows, columns, count, a, QUERIES, 1, b, columns, [&](int i, int j, acc sum) {
        if (i < rows && j < columns) {
            real *out = to.row(first + i) + j;
            *out = real(acc(*out) + sum);
        }
    });
}

// The gradients of q, k and v from g, that of out. With p = softmax(s), s = q k' scale, and
// delta = sum(g out) of each row:
//     dv = p' g,  dp = g v',  ds = p (dp - delta),  dq = ds k scale,  dk = ds' q scale.
// strides: of q, k, v, out, g, gq, gk, gv.
//
// A block takes `query_part` queries and `key_part` keys of a head. Those that all are in one part
// give all gradients in one pass, with 5 products (5/7 of the work of two passes): `wants` 3. For
// more blocks than there are heads: `wants` 1 is dq, which needs all keys in one part, and `wants`
// 2 is dk and dv, which need all queries in one. Nothing is added up by two blocks: the bits
// are the same each time.
__global__ void attention_backward(const real *q, const real *k, const real *v, const real *out,
                                   const real *g, const acc *lse, real *gq, real *gk, real *gv,
                                   const int64 *strides, int64 heads, int64 rows, int64 queries,
                                   int64 keys, int32 dim, int32 value_dim, int32 causal, acc scale,
                                   int64 query_part, int64 key_part, int32 wants) {
    alignas(64) __shared__ acc q_tile[DIM * QUERIES], g_tile[DIM * QUERIES];  // (dim, queries)
    alignas(64) __shared__ acc q_rows[QUERIES * DIM + 2 * LANES];  // (queries, dim), scaled
    alignas(64) __shared__ acc g_rows[QUERIES * DIM + 2 * LANES];
    alignas(64) __shared__ acc gq_tile[DIM * QUERIES];  // (dim, queries)
    alignas(64) __shared__ acc kv_tile[KEYS_BACK * DIM];  // (keys, value_dim), then (keys, dim)
    alignas(64) __shared__ acc p_tile[KEYS_BACK * QUERIES], ds_tile[KEYS_BACK * QUERIES];
    alignas(64) __shared__ acc delta[QUERIES], log_total[QUERIES];
    int64 query_parts = (queries + query_part - 1) / query_part;
    int64 key_parts = (keys + key_part - 1) / key_part;
    for (int64 block = blockIdx.x; block < rows / queries * query_parts * key_parts;
         block += gridDim.x) {
        int64 head = block / (query_parts * key_parts);
        int64 query_begin = block / key_parts % query_parts * query_part;
        int64 key_begin = block % key_parts * key_part;
        int64 query_end = query_begin + query_part, key_end = key_begin + key_part;
        if (query_end > queries) query_end = queries;
        if (key_end > keys) key_end = keys;
        auto q_head = head_of(q, strides, head, heads), k_head = head_of(k, strides + 3, head, heads);
        auto v_head = head_of(v, strides + 6, head, heads), o_head = head_of(out, strides + 9, head, heads);
        auto g_head = head_of(g, strides + 12, head, heads);
        auto gq_head = head_of(gq, strides + 15, head, heads);
        auto gk_head = head_of(gk, strides + 18, head, heads), gv_head = head_of(gv, strides + 21, head, heads);
        if (wants & 2)
            for (int64 i = key_begin; i < key_end; i++) {
                for (int j = threadIdx.x; j < dim; j += blockDim.x) gk_head.row(i)[j] = 0;
                for (int j = threadIdx.x; j < value_dim; j += blockDim.x) gv_head.row(i)[j] = 0;
            }

        for (int64 first = query_begin; first < query_end; first += QUERIES) {
            int count = least(QUERIES, query_end - first);
            int64 seen = causal && first + count < key_end ? first + count : key_end;
            load_across(q_tile, q_head, first, count, dim, scale);
            load_across(g_tile, g_head, first, count, value_dim, 1);
            load(q_rows, q_head, first, count, dim, scale);
            load(g_rows, g_head, first, count, value_dim);
            for (int j = threadIdx.x; j < dim * QUERIES; j += blockDim.x) gq_tile[j] = 0;
            for (int i = threadIdx.x; i < count; i += blockDim.x) {
                const real *a = o_head.row(first + i), *b = g_head.row(first + i);
                acc dot = 0;
                for (int j = 0; j < value_dim; j++) dot = fma_(acc(a[j]), acc(b[j]), dot);
                delta[i] = dot;
                log_total[i] = lse[head * queries + first + i];
            }
            for (int64 start = key_begin; start < seen; start += KEYS_BACK) {
                int n = least(KEYS_BACK, seen - start);
                load(kv_tile, v_head, start, n, value_dim);
                __syncthreads();
                product(n, QUERIES, value_dim, kv_tile, value_dim, 1, g_tile, QUERIES,
                        [&](int i, int j, acc sum) { ds_tile[i * QUERIES + j] = sum; });
                __syncthreads();
                load(kv_tile, k_head, start, n, dim);
                __syncthreads();
                score(p_tile, kv_tile, q_tile, n, dim, causal, start, first);
                __syncthreads();
                slopes(p_tile, ds_tile, log_total, delta, n);
                __syncthreads();
                if (wants & 1)
                    product(dim, QUERIES, n, kv_tile, 1, dim, ds_tile, QUERIES,
                            [&](int i, int j, acc sum) { gq_tile[i * QUERIES + j] += sum; });
                if (wants & 2) {
                    add_product(gk_head, start, n, dim, count, ds_tile, q_rows);
                    add_product(gv_head, start, n, value_dim, count, p_tile, g_rows);
                }
                __syncthreads();
            }
            if (wants & 1)
                store_across(gq_head, first, count, dim, gq_tile, [&](int) { return scale; });
            __syncthreads();
        }
    }
}
