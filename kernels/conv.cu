// Convolution without the matrices of im2col: products of small matrices, read from the images where
// they lie. Images (H, C, W, N), weights (O, C, kh, kw).
//
// With the samples innermost, N neighbours of the input lie under each tap of a column of the
// output. So a block of ROWS outputs x COLUMNS samples stays in registers, as in tiles.cuh, while
// the channels and their taps go by: each takes ROWS numbers of the weight, COLUMNS of the input.
//
// Which of its taps are inside the image is told by tables, three numbers for each row, or column,
// of the output: (first tap, how many there are, what the first one reads). The input's gradient
// is the same sum with other tables, since every input is in turn the sum over what has read it.
//
// Flops: 2 C kh kw for each output. Bytes: the input kh kw O / ROWS times, nearly always from the
// second-level cache: 128 B for 512 flops.
#include "tiles.cuh"

constexpr int MOST_TAPS = 64;

template <int N> struct Number { static constexpr int value = N; };

// put(i, j, start(i) + the sum over channels and taps of w x) for ROWS outputs x COLUMNS samples.
struct Tap { int64 w, x; };  // where it stands in the weight, and in the input
struct Sum { int64 channels, w_output, w_channel, x_channel; int count; const Tap *taps; };

template <int COLUMNS, class Start, class Put>
static __device__ __forceinline__ void taps_product(const Sum s, const real *w, const real *x,
                                                    Start start, Put put) {
    acc sum[ROWS][COLUMNS];
    for (int i = 0; i < ROWS; i++) {
        VECTOR
        for (int j = 0; j < COLUMNS; j++) sum[i][j] = start(i);
    }
    for (int64 c = 0; c < s.channels; c++, w += s.w_channel, x += s.x_channel)
        for (int tap = 0; tap < s.count; tap++) {
            const real *a = w + s.taps[tap].w, *b = x + s.taps[tap].x;
            PREFETCH(b + s.x_channel);  // the next channel is too far away for the CPU to guess
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

// out (Ho, groups outputs, Wo, N) = bias + the sums, x (H, groups channels, W, N). lines =
// Ho groups. steps: how far apart are groups, outputs, channels and taps (down, across) of the
// weight, and the rows and columns of the input that neighbouring taps read.
// At least ROWS outputs and LANES samples: the last blocks are moved back to end with them, so
// that some results are computed twice.
__global__ void conv_taps(const real *x, const real *w, const real *bias, real *out,
                          const int32 *rows, const int32 *columns, const int64 *steps,
                          int64 lines, int64 groups, int64 channels, int64 outputs, int64 width,
                          int64 n, int64 wo) {
    int64 w_down = steps[3], w_across = steps[4], x_line = groups * channels * width * n;
    int down = (outputs + ROWS - 1) / ROWS, across = (n + 2 * LANES - 1) / (2 * LANES);
    Tap taps[MOST_TAPS];
    Sum s = {channels, steps[1], steps[2], width * n, 0, taps};
    for (int64 line = blockIdx.x; line < lines; line += gridDim.x) {
        int64 group = line % groups;
        const int32 *over = rows + line / groups * 3;
        for (int64 column = 0; column < wo; column++) {
            const int32 *beside = columns + column * 3;
            s.count = 0;
            for (int k = 0; k < over[1]; k++)
                for (int l = 0; l < beside[1]; l++)
                    taps[s.count++] = {k * w_down + l * w_across,
                                       k * steps[5] * x_line + l * steps[6] * n};
            const real *from = x + over[2] * x_line + (group * channels * width + beside[2]) * n;
            const real *weight = w + group * steps[0] + over[0] + beside[0];
            auto block = [&](auto most, int o, int j) {
                int o0 = least(o, outputs - ROWS), j0 = least(j, n - most.value);
                const real *offset = bias + group * outputs + o0;
                real *to = out + ((line * outputs + o0) * wo + column) * n + j0;
                taps_product<most.value>(s, weight + o0 * s.w_output, from + j0,
                                         [&](int i) { return acc(offset[i]); },
                                         [&](int i, int k, acc sum) {
                    if (PER_THREAD(true, i >= o - o0 && k >= j - j0))  // two threads: one writes
                        to[i * wo * n + k] = real(sum);
                });
            };
            for (int item = threadIdx.x; item < down * across; item += blockDim.x) {
                int o = item / across * ROWS, j = item % across * 2 * LANES;
                if (n - j >= 2 * LANES) {
                    block(Number<2 * LANES>(), o, j);
                } else {
                    block(Number<LANES>(), o, j);
                    if (n - j > LANES) block(Number<LANES>(), o, j + LANES);
                }
            }
        }
    }
}

// The weight's gradient: sums along the samples and columns, for OUTPUTS x channels of them at a
// time. A lane sums up every LANES-th product.
constexpr int OUTPUTS = 4, CHANNELS = ROWS / 2;

struct Run { int64 rows, columns, length, g_row, g_column, x_row, x_column; };

// put(i, c, the sum over rows, columns and `length` of g x), g and x with steps to the next output
// and to the next channel.
template <int COUNT, class Put>
static __device__ __forceinline__ void dot_products(const Run &s, const real *g, int64 g_output,
                                                    const real *x, int64 x_channel, Put put) {
    acc sum[OUTPUTS][COUNT][LANES] = {};
    for (int64 row = 0; row < s.rows; row++)
        for (int64 column = 0; column < s.columns; column++) {
            const real *a = g + row * s.g_row + column * s.g_column;
            const real *b = x + row * s.x_row + column * s.x_column;
            int64 at = 0;
            for (; at + LANES <= s.length; at += LANES)
                for (int i = 0; i < OUTPUTS; i++)
                    for (int c = 0; c < COUNT; c++) {
                        VECTOR
                        for (int j = 0; j < LANES; j++)
                            sum[i][c][j] = fma_(acc(a[i * g_output + at + j]),
                                                acc(b[c * x_channel + at + j]), sum[i][c][j]);
                    }
            int left = int(s.length - at);
            for (int i = 0; left > 0 && i < OUTPUTS; i++)
                for (int c = 0; c < COUNT; c++) {
                    VECTOR
                    for (int j = 0; j < LANES; j++)
                        if (j < left)
                            sum[i][c][j] = fma_(acc(a[i * g_output + at + j]),
                                                acc(b[c * x_channel + at + j]), sum[i][c][j]);
                }
        }
    for (int i = 0; i < OUTPUTS; i++)
        for (int c = 0; c < COUNT; c++) {
            acc *lane = sum[i][c];
            UNROLL
            for (int half = LANES / 2; half; half /= 2) {
                VECTOR
                for (int j = 0; j < half; j++) lane[j] += lane[j + half];
            }
            put(i, c, lane[0]);
        }
}

// gw (groups outputs, channels, kh, kw) = the sums of g (Ho, groups outputs, Wo, N) times x (H,
// groups channels, W, N) under each tap. rows, columns: tables of a tap down or across: (first
// output that it has, how many, what the first one reads). strides: from what an output reads to
// what the next one does. lines = groups * outputs / OUTPUTS, rounded up for each group.
__global__ void conv_weight_gradient(const real *g, const real *x, acc *gw, const int32 *rows,
                                     const int32 *columns, int64 lines, int64 groups,
                                     int64 channels, int64 outputs, int64 width, int64 n,
                                     int64 ho, int64 wo, int32 kh, int32 kw, int32 sh, int32 sw,
                                     int64 together) {
    int64 blocks = lines / groups, g_line = groups * outputs * wo * n;
    int64 x_line = groups * channels * width * n, parts = (channels + CHANNELS - 1) / CHANNELS;
    for (int64 line = blockIdx.x; line < lines; line += gridDim.x) {
        int64 group = line / blocks, o = line % blocks * OUTPUTS;
        int64 o0 = least(o, outputs - OUTPUTS);
        acc *to = gw + (group * outputs + o0) * channels * kh * kw;
        const real *up = g + (group * outputs + o0) * wo * n, *a = x + group * channels * width * n;
        for (int64 i = (o - o0) * channels * kh * kw + threadIdx.x; i < OUTPUTS * channels * kh * kw; i += blockDim.x) to[i] = 0;
        __syncthreads();
        for (int64 first = 0; first < ho; first += together)
            for (int64 item = threadIdx.x; item < parts * kh * kw; item += blockDim.x) {
                int64 tap = item % (kh * kw), c = item / (kh * kw) * CHANNELS;
                const int32 *over = rows + tap / kw * 3, *beside = columns + tap % kw * 3;
                int64 i0 = first > over[0] ? first : over[0], i1 = least(first + together, over[0] + over[1]);
                if (i1 <= i0 || !beside[1]) continue;
                Run s = {i1 - i0, beside[1], n, g_line, n, sh * x_line, sw * n};
                if (sw == 1) s.columns = 1, s.length = beside[1] * n;
                const real *g0 = up + i0 * g_line + beside[0] * n;
                const real *x0 = a + (over[2] + (i0 - over[0]) * sh) * x_line + beside[2] * n;
                auto some = [&](auto count, int64 c) {
                    dot_products<count.value>(s, g0, wo * n, x0 + c * width * n, width * n, [&](int i, int k, acc sum) {
                        if (i >= o - o0) to[(i * channels + c + k) * kh * kw + tap] += sum;
                    });
                };
                if (channels - c >= CHANNELS) some(Number<CHANNELS>(), c);
                else for (; c < channels; c++) some(Number<1>(), c);
            }
    }
}
