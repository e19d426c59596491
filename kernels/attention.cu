// Scaled dot-product attention, softmax(q k' scale) v, and its gradients, without a matrix of all
// scores in memory: tile by tile, with the online softmax (Milakov & Gimelshein 2018; Dao et al.
// 2022, "FlashAttention").
//
// q (queries, dim), k (keys, dim) and v (keys, value_dim) of each head may be strided: heads cut
// from one projection need no copy. `strides` holds, for each array in turn, how many numbers
// apart its batches, heads and rows are; the numbers of a row are neighbours.
//
// Flops for each pair of a query and a key that it sees: forward 2 (dim + value_dim), backward
// 6 dim + 4 value_dim. Bytes: k and v are read once for each tile of queries. So it is bound by
// arithmetic, nearly all of it in the products of tiles.cuh.
//
// Tiles of scores lie transposed, (keys, queries). Queries are then side by side: the maxima, sums
// and masks of 16 queries are one vector operation each, and only what belongs to queries has to be
// transposed when it is loaded, which happens once.
//
// With dropout, keep (batch * heads, queries, keys) says which probabilities stay, and the output
// is `upscale` as large. `drops` 0: keep is not read.
//
// uninitialised: products are of whole blocks (tiles.cuh), with what a tile's unused rows hold
#include "tiles.cuh"

constexpr int DIM = 128;  // the largest dim and value_dim
// Queries and keys of a tile: what a CPU's caches and 48 KB of a GPU's shared memory hold.
#if defined(MINIPAR_HOST) && !defined(MINIPAR_EMULATED)
constexpr int QUERIES = 2 * LANES, KEYS = 128, KEYS_BACK = 128;
#else
constexpr int QUERIES = 64 / sizeof(acc), KEYS = 128 / sizeof(acc), KEYS_BACK = 32 / sizeof(acc);
#endif

// The matrix of one head in an array (batch, heads, rows, columns).
template <class N>
static __device__ __forceinline__ Matrix<N> head_of(N *data, const int64 *strides, int64 head,
                                                    int64 heads) {
    return {data + head / heads * strides[0] + head % heads * strides[1], strides[2]};
}

// scores[key][query] = q k' scale of n keys from `key` on and `count` queries from `query` on;
// -infinity where the key stands after the query.
static __device__ __forceinline__ void score(acc *scores, const acc *k, const acc *q, int n,
                                             int count, int dim, bool causal, int64 key,
                                             int64 query) {
    int ahead = causal ? int(key - query) : -n;
    product(n, count, dim, k, dim, 1, q, QUERIES, [&](int i, int j, acc sum) {
        scores[i * QUERIES + j] = j < i + ahead ? acc(-HUGE) : sum;
    });
}

// The online softmax of n keys: scores become e^(score - top), `total` their sum so far and `top`
// the largest so far. What was summed up with a smaller `top` has to be multiplied by `shrink`.
static __device__ __forceinline__ void exponentials(acc *scores, int n, int count, acc *top,
                                                    acc *total, acc *shrink) {
    for (int j0 = threadIdx.x * LANES; j0 < count; j0 += blockDim.x * LANES) {
        acc high[LANES], sum[LANES], *p = scores + j0;
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
}

// out = softmax(q k' scale) v; lse (batch * heads, queries) = log(sum of e^score) of each row, for
// the backward. A query that sees no key gets zeros. strides: of q, k, v, out.
// rows = batch * heads * queries.
__global__ void attention_forward(const real *q, const real *k, const real *v, real *out, acc *lse,
                                  const bool *keep, const int64 *strides, int64 heads, int64 rows,
                                  int64 queries, int64 keys, int32 dim, int32 value_dim,
                                  int32 causal, acc scale, int32 drops, acc upscale) {
    alignas(64) __shared__ acc q_tile[DIM * QUERIES];  // (dim, queries), scaled
    alignas(64) __shared__ acc out_tile[DIM * QUERIES];  // (value_dim, queries), times `total`
    alignas(64) __shared__ acc kv_tile[KEYS * DIM];  // (keys, dim), then (keys, value_dim)
    alignas(64) __shared__ acc p_tile[KEYS * QUERIES], keep_tile[KEYS * QUERIES];
    alignas(64) __shared__ acc top[QUERIES], total[QUERIES], shrink[QUERIES];
    int64 tiles = (queries + QUERIES - 1) / QUERIES;
    for (int64 block = blockIdx.x; block < rows / queries * tiles; block += gridDim.x) {
        int64 head = block / tiles, first = block % tiles * QUERIES;
        int count = least(QUERIES, queries - first);
        int64 seen = causal ? least(keys, first + count) : keys;
        load_across(q_tile, QUERIES, head_of(q, strides, head, heads), first, count, dim, scale);
        for (int j = threadIdx.x; j < value_dim * QUERIES; j += blockDim.x) out_tile[j] = 0;
        for (int j = threadIdx.x; j < QUERIES; j += blockDim.x) top[j] = -HUGE, total[j] = 0;
        for (int64 start = 0; start < seen; start += KEYS) {
            int n = least(KEYS, seen - start);
            load(kv_tile, head_of(k, strides + 3, head, heads), start, n, dim, 1);
            if (drops)
                load_across(keep_tile, QUERIES,
                            Matrix<const bool>{keep + head * queries * keys + start, keys},
                            first, count, n, 1);
            __syncthreads();
            score(p_tile, kv_tile, q_tile, n, count, dim, causal, start, first);
            __syncthreads();
            exponentials(p_tile, n, count, top, total, shrink);
            load(kv_tile, head_of(v, strides + 6, head, heads), start, n, value_dim, 1);
            __syncthreads();
            if (drops) {
                for (int i = threadIdx.x; i < n * QUERIES; i += blockDim.x)
                    p_tile[i] *= keep_tile[i];
                __syncthreads();
            }
            product(value_dim, count, n, kv_tile, 1, value_dim, p_tile, QUERIES,
                    [&](int i, int j, acc sum) {
                        acc *o = out_tile + i * QUERIES + j;
                        *o = fma_(*o, shrink[j], sum);
                    });
            __syncthreads();
        }
        store_across(head_of(out, strides + 9, head, heads), first, count, value_dim, out_tile,
                     QUERIES, [&](int i) { return upscale / (total[i] == 0 ? 1 : total[i]); });
        for (int i = threadIdx.x; i < count; i += blockDim.x)
            lse[head * queries + first + i] = total[i] == 0 ? acc(0) : top[i] + log_(total[i]);
        __syncthreads();
    }
}

// Scores become probabilities e^(score - lse), and their gradients in ds those of the scores.
static __device__ __forceinline__ void slopes(acc *p, acc *ds, int n, const acc *lse,
                                              const acc *delta) {
    for (int at = threadIdx.x * LANES; at < n * QUERIES; at += blockDim.x * LANES) {
        int j0 = at % QUERIES;
        VECTOR
        for (int j = 0; j < LANES; j++) {
            p[at + j] = exp_(p[at + j] - lse[j0 + j]);
            ds[at + j] = p[at + j] * (ds[at + j] - delta[j0 + j]);
        }
    }
}

// to(first + i, j) += sum over the queries of a tile of a[i][query] b[query][j]
static __device__ __forceinline__ void add_product(Matrix<acc> to, int64 first, int rows,
                                                   int columns, int count, const acc *a,
                                                   const acc *b) {
    product(rows, columns, count, a, QUERIES, 1, b, columns, [&](int i, int j, acc sum) {
        if (i < rows && j < columns) to.row(first + i)[j] += sum;
    });
}

// The gradients of q, k and v from g, that of out. With s = q k' scale, p = softmax(s) and
// delta = sum(g out) of each row:
//     dv = p' g,  dp = g v',  ds = p (dp - delta),  dq = ds k scale,  dk = ds' q scale.
// Probabilities are computed again, from lse. strides: of q, k, v, out, g, gq, gk, gv.
//
// A block takes `query_part` queries and `key_part` keys of a head. If those are all, one pass
// gives all gradients with 5 products: `wants` 3. For more blocks than there are heads, two passes
// take 7: `wants` 1 gives dq, and needs all keys in one part; `wants` 2 gives dk and dv, and needs
// all queries in one. No two blocks add to one sum, so the bits are the same each time. dk and dv
// are added up tile by tile where they are kept, hence `acc`.
__global__ void attention_backward(const real *q, const real *k, const real *v, const real *out,
                                   const real *g, const acc *lse, const bool *keep, real *gq,
                                   acc *gk, acc *gv, const int64 *strides, int64 heads,
                                   int64 rows, int64 queries, int64 keys, int32 dim,
                                   int32 value_dim, int32 causal, acc scale, int32 drops,
                                   acc upscale, int64 query_part, int64 key_part, int32 wants) {
    alignas(64) __shared__ acc q_tile[DIM * QUERIES], g_tile[DIM * QUERIES];  // (dim, queries)
    alignas(64) __shared__ acc q_rows[QUERIES * DIM + LANES], g_rows[QUERIES * DIM + LANES];
    alignas(64) __shared__ acc gq_tile[DIM * QUERIES];
    alignas(64) __shared__ acc kv_tile[KEYS_BACK * DIM];  // (keys, value_dim), then (keys, dim)
    alignas(64) __shared__ acc p_tile[KEYS_BACK * QUERIES], ds_tile[KEYS_BACK * QUERIES];
    alignas(64) __shared__ acc keep_tile[KEYS_BACK * QUERIES], delta[QUERIES], sums[QUERIES];
    int64 query_parts = (queries + query_part - 1) / query_part;
    int64 key_parts = (keys + key_part - 1) / key_part, parts = query_parts * key_parts;
    for (int64 block = blockIdx.x; block < rows / queries * parts; block += gridDim.x) {
        int64 head = block / parts, key_begin = block % key_parts * key_part;
        int64 query_begin = block / key_parts % query_parts * query_part;
        int64 query_end = least(query_begin + query_part, queries);
        int64 key_end = least(key_begin + key_part, keys);
        auto q_head = head_of(q, strides, head, heads);
        auto g_head = head_of(g, strides + 12, head, heads);
        auto gk_head = head_of(gk, strides + 18, head, heads);
        auto gv_head = head_of(gv, strides + 21, head, heads);
        auto out_head = head_of(out, strides + 9, head, heads);
        if (wants & 2)
            for (int64 i = key_begin; i < key_end; i++) {
                for (int j = threadIdx.x; j < dim; j += blockDim.x) gk_head.row(i)[j] = 0;
                for (int j = threadIdx.x; j < value_dim; j += blockDim.x) gv_head.row(i)[j] = 0;
            }
        for (int64 first = query_begin; first < query_end; first += QUERIES) {
            int count = least(QUERIES, query_end - first);
            int64 seen = causal ? least(key_end, first + count) : key_end;
            load_across(q_tile, QUERIES, q_head, first, count, dim, scale);
            load_across(g_tile, QUERIES, g_head, first, count, value_dim, upscale);
            load(q_rows, q_head, first, count, dim, scale);
            load(g_rows, g_head, first, count, value_dim, upscale);
            for (int j = threadIdx.x; j < dim * QUERIES; j += blockDim.x) gq_tile[j] = 0;
            for (int i = threadIdx.x; i < count; i += blockDim.x) {
                acc dot = 0;
                for (int j = 0; j < value_dim; j++)
                    dot = fma_(acc(out_head.row(first + i)[j]), acc(g_head.row(first + i)[j]), dot);
                delta[i] = dot;
                sums[i] = lse[head * queries + first + i];
            }
            for (int64 start = key_begin; start < seen; start += KEYS_BACK) {
                int n = least(KEYS_BACK, seen - start);
                load(kv_tile, head_of(v, strides + 6, head, heads), start, n, value_dim, 1);
                if (drops)
                    load_across(keep_tile, QUERIES,
                                Matrix<const bool>{keep + head * queries * keys + start, keys},
                                first, count, n, 1);
                __syncthreads();
                product(n, count, value_dim, kv_tile, value_dim, 1, g_tile, QUERIES,
                        [&](int i, int j, acc sum) { ds_tile[i * QUERIES + j] = sum; });
                __syncthreads();
                load(kv_tile, head_of(k, strides + 3, head, heads), start, n, dim, 1);
                if (drops)
                    for (int i = threadIdx.x; i < n * QUERIES; i += blockDim.x)
                        ds_tile[i] *= keep_tile[i];
                __syncthreads();
                score(p_tile, kv_tile, q_tile, n, count, dim, causal, start, first);
                __syncthreads();
                slopes(p_tile, ds_tile, n, sums, delta);
                __syncthreads();
                if (drops) {
                    for (int i = threadIdx.x; i < n * QUERIES; i += blockDim.x)
                        p_tile[i] *= keep_tile[i];
                    __syncthreads();
                }
                if (wants & 1)
                    product(dim, count, n, kv_tile, 1, dim, ds_tile, QUERIES,
                            [&](int i, int j, acc sum) { gq_tile[i * QUERIES + j] += sum; });
                if (wants & 2) {
                    add_product(gk_head, start, n, dim, count, ds_tile, q_rows);
                    add_product(gv_head, start, n, value_dim, count, p_tile, g_rows);
                }
                __syncthreads();
            }
            if (wants & 1)
                store_across(head_of(gq, strides + 15, head, heads), first, count, dim, gq_tile,
                             QUERIES, [&](int) { return scale; });
            __syncthreads();
        }
    }
}
