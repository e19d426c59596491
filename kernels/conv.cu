// Convolution without the matrices of im2col: products of small matrices, read from the images
// where they lie. Images (H, C, W, N), weights (O, C, kh, kw).
//
// With the samples innermost, under each tap of a column of the output lie N neighbours of the
// input. So a block of ROWS outputs x COLUMNS samples stays in registers, as in tiles.cuh, while
// channels and taps go by: each takes ROWS numbers of the weight and COLUMNS of the input.
//
// Tables tell which taps are inside the image. The input's gradient is the same sum as the output
// with other tables: an input's gradient is gathered from the outputs that have read it.
//
// Flops: 2 C kh kw for each output. Bytes: a number of the input is loaded for 2 ROWS flops, from
// the caches: it lies under kh kw columns of the output, and is wanted for O / ROWS blocks of each.
#include "tiles.cuh"

constexpr int MOST_TAPS = 64;

template <int N> struct Number { static constexpr int value = N; };

struct Tap { int64 w, x; };  // where it stands in the weight, and in the input
struct Taps {
    int64 channels, w_output, w_channel, x_channel;  // how many; from one to the next
    int count;
    const Tap *taps;
};

// put(i, j, start(i) + the sum over channels and taps of w x) for ROWS outputs, COLUMNS samples.
template <int COLUMNS, class Start, class Put>
static __device__ __forceinline__ void taps_product(const Taps s, const real *w, const real *x,
                                                    Start start, Put put) {
    acc sum[ROWS][COLUMNS];
    for (int i = 0; i < ROWS; i++) {
        VECTOR
        for (int j = 0; j < COLUMNS; j++) sum[i][j] = start(i);
    }
    for (int64 c = 0; c < s.channels; c++, w += s.w_channel, x += s.x_channel)
        for (int tap = 0; tap < s.count; tap++) {
            const real *a = w + s.taps[tap].w, *b = x + s.taps[tap].x;
            PREFETCH(b + s.x_channel);  // too far away for the CPU to foresee
            PREFETCH(b + s.x_channel + LANES);
            for (int i = 0; i < ROWS; i++) {
                VECTOR
                for (int j = 0; j < COLUMNS; j++)
                    sum[i][j] = fma_(acc(a[i * s.w_output]), acc(b[j]), sum[i][j]);
            }
        }
    for (int i = 0; i < ROWS; i++) {
        VECTOR
        for (int j = 0; j < COLUMNS; j++) put(i, j, sum[i][j]);
    }
}

// out (Ho, groups outputs, Wo, N) = bias + the sums; x (H, groups channels, W, N). lines =
// Ho groups. rows, columns: for each row and column of the output (where its first tap inside
// stands in the weight, how many there are, what that tap reads). steps: in the weight from a
// group, output, channel, tap down and tap across to the next; in rows and columns of the input
// from what a tap reads to what the next one does.
// There are at least ROWS outputs and LANES samples: the last block of them is moved back to end
// with them, and computes some results a second time.
__global__ void conv_taps(const real *x, const real *w, const real *bias, real *out,
                          const int32 *rows, const int32 *columns, const int64 *steps,
                          int64 lines, int64 groups, int64 channels, int64 outputs, int64 width,
                          int64 n, int64 wo) {
    int64 x_line = groups * channels * width * n;
    int down = (outputs + ROWS - 1) / ROWS, across = (n + 2 * LANES - 1) / (2 * LANES);
    Tap taps[MOST_TAPS];
    Taps s = {channels, steps[1], steps[2], width * n, 0, taps};
    for (int64 line = blockIdx.x; line < lines; line += gridDim.x) {
        int64 group = line % groups;
        const int32 *over = rows + line / groups * 3;
        for (int item = threadIdx.x; item < down * across * wo; item += blockDim.x) {
            // Columns after one another: the weights of ROWS outputs stay in the cache.
            int j = item % across * 2 * LANES, column = item / across % int(wo);
            int o = item / across / int(wo) * ROWS;
            const int32 *beside = columns + column * 3;
            s.count = 0;
            for (int k = 0; k < over[1]; k++)
                for (int l = 0; l < beside[1]; l++)
                    taps[s.count++] = {k * steps[3] + l * steps[4],
                                       k * steps[5] * x_line + l * steps[6] * n};
            const real *from = x + over[2] * x_line + (group * channels * width + beside[2]) * n;
            const real *weight = w + group * steps[0] + over[0] + beside[0];
            auto block = [&](auto most, int j) {
                int o0 = least(o, outputs - ROWS), j0 = least(j, n - most.value);
                const real *offset = bias + group * outputs + o0;
                real *to = out + ((line * outputs + o0) * wo + column) * n + j0;
                taps_product<most.value>(
                    s, weight + o0 * s.w_output, from + j0, [&](int i) { return acc(offset[i]); },
                    [&](int i, int k, acc sum) {
                        if (PER_THREAD(true, o0 + i >= o && j0 + k >= j))  // one thread writes it
                            to[i * wo * n + k] = real(sum);
                    });
            };
            if (n - j >= 2 * LANES) {
                block(Number<2 * LANES>(), j);
            } else {
                block(Number<LANES>(), j);
                if (n - j > LANES) block(Number<LANES>(), j + LANES);
            }
        }
    }
}

// The weight's gradient: products of g and x, summed up over samples, columns and rows. Samples are
// neighbours in both, so a part of a line of g is transposed: then ROWS channels x COLUMNS outputs
// stay in registers while the samples go by.
constexpr int SAMPLES = PER_THREAD(256, 32);  // of a part
constexpr int OUTPUTS = 32;                   // of a block

struct Gradient {
    int64 groups, channels, outputs, width, n, ho, wo;
    int kh, kw, sh, sw;
    const int32 *rows, *columns;
};

// put(i, j, sum of x g) for ROWS channels and COLUMNS outputs over the samples [begin, end) of a
// line: `column` columns on, x is sw columns on. g has COLUMNS outputs for each sample.
template <int COLUMNS, class Put>
static __device__ __forceinline__ void samples_product(const Gradient &s, int64 begin, int64 end,
                                                       const real *x, const acc *g, Put put) {
    acc sum[ROWS][COLUMNS];
    for (int i = 0; i < ROWS; i++) {
        VECTOR
        for (int j = 0; j < COLUMNS; j++) sum[i][j] = 0;
    }
    int64 x_channel = s.width * s.n;
    for (int64 at = begin; at < end;) {
        int64 column = at / s.n, stop = s.sw == 1 ? end : least(end, (column + 1) * s.n);
        const real *a = x + at + column * (s.sw - 1) * s.n;
        for (; at < stop; at++, a++, g += COLUMNS)
            for (int i = 0; i < ROWS; i++) {
                VECTOR
                for (int j = 0; j < COLUMNS; j++)
                    sum[i][j] = fma_(acc(a[i * x_channel]), g[j], sum[i][j]);
            }
    }
    for (int i = 0; i < ROWS; i++) {
        VECTOR
        for (int j = 0; j < COLUMNS; j++) put(i, j, sum[i][j]);
    }
}

// total (kh kw, channels, outputs) of a group, for `count` of its outputs, at most COLUMNS.
template <int COLUMNS>
static __device__ __forceinline__ void gradient_of(const Gradient &s, acc *tile, const real *g,
                                                   const real *x, acc *total, int count) {
    int taps = s.kh * s.kw, blocks = (s.channels + ROWS - 1) / ROWS;
    int64 line = s.wo * s.n;
    for (int64 i = threadIdx.x; i < taps * s.channels * count; i += blockDim.x)
        total[i / count * s.outputs + i % count] = 0;
    for (int64 row = 0; row < s.ho; row++)
        for (int64 first = 0; first < line; first += SAMPLES) {
            int64 last = least(line, first + SAMPLES);
            const real *up = g + row * s.groups * s.outputs * line + first;
            __syncthreads();
            for (int i = 0; i < COLUMNS; i++)
                for (int64 j = threadIdx.x; j < last - first; j += blockDim.x)
                    tile[j * COLUMNS + i] = i < count ? acc(up[i * line + j]) : acc(0);
            __syncthreads();
            for (int item = threadIdx.x; item < blocks * taps; item += blockDim.x) {
                int tap = item % taps, c = item / taps * ROWS, c0 = least(c, s.channels - ROWS);
                const int32 *over = s.rows + tap / s.kw * 3, *beside = s.columns + tap % s.kw * 3;
                int64 begin = beside[0] * s.n, end = least(begin + beside[1] * s.n, last);
                if (begin < first) begin = first;
                if (row < over[0] || row >= over[0] + over[1] || begin >= end) continue;
                int64 y = over[2] + (row - over[0]) * s.sh, left = beside[2] - beside[0] * s.sw;
                const real *from = x + ((y * s.groups * s.channels + c0) * s.width + left) * s.n;
                acc *to = total + (tap * s.channels + c0) * s.outputs;
                samples_product<COLUMNS>(s, begin, end, from, tile + (begin - first) * COLUMNS,
                                         [&](int i, int j, acc sum) {
                    if (c0 + i >= c && j < count) to[i * s.outputs + j] += sum;
                });
            }
        }
}

// total (groups, kh kw, channels, outputs) from g (Ho, groups outputs, Wo, N) and x (H, groups
// channels, W, N). rows, columns: for each tap down, and across (the first output that reads the
// image with it, how many do, what the first one reads). lines: groups times the blocks of OUTPUTS
// outputs. There are at least ROWS channels.
__global__ void conv_weight_gradient(const real *g, const real *x, acc *total, const int32 *rows,
                                     const int32 *columns, int64 lines, int64 groups,
                                     int64 channels, int64 outputs, int64 width, int64 n,
                                     int64 ho, int64 wo, int32 kh, int32 kw, int32 sh, int32 sw) {
    alignas(64) __shared__ acc tile[SAMPLES * 2 * LANES];
    Gradient s = {groups, channels, outputs, width, n, ho, wo, kh, kw, sh, sw, rows, columns};
    for (int64 line = blockIdx.x; line < lines; line += gridDim.x) {
        int64 group = line / (lines / groups), block = line % (lines / groups);
        int64 end = least(outputs, (block + 1) * OUTPUTS);
        for (int64 o = block * OUTPUTS; o < end; o += 2 * LANES) {
            const real *up = g + (group * outputs + o) * wo * n;
            const real *from = x + group * channels * width * n;
            acc *to = total + group * kh * kw * channels * outputs + o;
            if (end - o > LANES)
                gradient_of<2 * LANES>(s, tile, up, from, to, least(2 * LANES, end - o));
            else
                gradient_of<LANES>(s, tile, up, from, to, end - o);
        }
    }
}
