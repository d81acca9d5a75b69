// Makes activations in the forms that products read, from numbers as they are, through the root mean square norm or through
// SwiGLU: one kernel for each form. Rows have `cols` elements; those of a form begin `stride` elements apart, `cols` rounded up to
// 16 bytes, with zeros behind the row. All arrays are dense and begin at multiples of 16, parts of a form at multiples of 256.
//
//   f32     x, rows x stride
//   fixed   high and low, i8, rows x cols; d, f32, rows x cols/32; sums, i32, rows x cols/32 x 2: of 32 numbers, and of the first
//           16 of them. cols is a multiple of 32. To the bit `granule_quant::quantize_fixed` with 16 bits
//   f16     f16, rows x stride: x times a power of two of the row's, with which its largest magnitude is from 2^14 to below
//           2^15 (at most 2^126; 1 for a row of zeros); the inverse, f32, rows
//   bf16    two bf16, rows x stride each: the one nearest to x, and the one nearest to what that leaves
//
//   flag    one word: bit 0 is set where a number is NaN or infinite, by `fixed`, whose d is NaN then and whose numbers are 0,
//           and by `f16`, whose inverse is NaN then
// Grid: x over chunks of 4096 elements, y over rows; any size does all of the work. Block: 256 threads. Dynamic shared memory:
// `stride` floats where `held` is set, which spares reading a row again that is needed twice.
#include "encode.cuh"
#include "floats.cuh"
#include "tensor.cuh"

// What activations are made from.
constexpr u32 NORM = 1, SWIGLU = 2; // 0: numbers as they are

// What a launch makes.
struct Activate {
    const float *a;     // rows x cols: x, or the gate
    const float *b;     // NORM: the weights, cols; SWIGLU: rows x cols
    const u32 *numbers; // NORM: which rows of `a` to take; null: all, in order
    u8 *parts[4];
    u32 *flag;
    u32 rows, cols, stride;
    u32 source;
    u32 held;
    float eps;
};

enum Form { F32, FIXED, F16, BF16 };

// Two words: what four 16-bit elements take, and two sums.
struct alignas(8) Pair {
    u32 word[2];
};

// exp(x) for x <= 0, within 2^-21; what is below -87 counts as -87, NaN stays NaN. The polynomial is that of Cephes' `expf`
// (Moshier), the order of operations that of granule-quant's `portable_softmax`.
__device__ inline float exp_of(float x)
{
    constexpr float ROUND = 12582912.0f; // 1.5 * 2^23: adding it rounds to a whole number, which is then in the low bits
    x = x < -87.0f ? -87.0f : x;
    const float t = x * 1.44269504f + ROUND, n = t - ROUND;
    const float f = n * 2.1219444e-4f + (n * -0.6933594f + x); // ln 2 in two parts; the product with the first is exact
    float p = 1.9875691e-4f;
    p = p * f + 1.3982e-3f;
    p = p * f + 8.333452e-3f;
    p = p * f + 4.1665796e-2f;
    p = p * f + 1.6666665e-1f;
    p = p * f + 0.5f;
    return ((p * (f * f) + f) + 1.0f) * float_of((bits_of(t) + 127) << 23);
}

// gate * sigmoid(gate) * up. The exponential is that of a negative number, so that nothing overflows.
__device__ inline float swiglu(float gate, float up)
{
    const float e = exp_of(-magnitude_of(gate));
    const float share = gate < 0.0f ? e : 1.0f;
    return gate * (share / (1.0f + e) * up);
}

// The elements of a chunk that shared memory has for this thread, which alone reads what it has written, and has written all
// that it reads.
__device__ inline Chunk held_chunk(const float *held, u32 first, u32 stride)
{
    Chunk chunk;
    UNROLLED for (u32 i = 0; i < PIECES; i++) {
        const u32 at = piece_at(first, i);
        const Wide wide = at < stride ? load<Wide>(held + at) : Wide{};
        UNROLLED for (u32 k = 0; k < PIECE_LEN; k++) chunk.v[i][k] = float_of(wide.word[k]);
    }
    return chunk;
}

__device__ inline void hold_chunk(float *held, u32 first, u32 stride, const Chunk &chunk)
{
    UNROLLED for (u32 i = 0; i < PIECES; i++) {
        const u32 at = piece_at(first, i);
        if (at < stride) store(held + at, wide_of(chunk.v[i]));
    }
}

// x becomes the activations; `scale` is 1 / sqrt(mean(x^2) + eps). What is past the row's end stays zero, even where that is
// infinite.
__device__ inline void finish(const Activate &to, u32 first, Chunk &x, const Chunk &b, float scale)
{
    UNROLLED for (u32 i = 0; i < PIECES; i++) {
        UNROLLED for (u32 k = 0; k < PIECE_LEN; k++) {
            if (to.source == SWIGLU) {
                x.v[i][k] = swiglu(x.v[i][k], b.v[i][k]);
            } else if (piece_at(first, i) + k < to.cols) {
                x.v[i][k] = x.v[i][k] * scale * b.v[i][k];
            }
        }
    }
}

// The exponent of the power of two that brings a magnitude with these bits to 2^14 or above and below 2^15, biased.
__device__ inline u32 exponent_of_factor(u32 magnitude)
{
    const u32 exponent = magnitude >> 23;
    return magnitude == 0 ? 127 : exponent < 15 ? 253 : 268 - exponent;
}

// Stores four numbers in the fixed form. Eight neighbouring lanes have a block of 32; all lanes of the warp take part, also those
// past the end of the row, which store nothing. Answers the bits of the flag.
__device__ inline u32 put_fixed(const Activate &to, u64 row, u32 at, const float *v)
{
    constexpr u32 GROUP = BLOCK_LEN / PIECE_LEN;
    const u32 largest = largest_magnitude<PIECE_LEN, GROUP>(v);
    const bool finite = largest < 0x7f800000;
    const float d = finite ? float_of(largest) / 32512.0f : float_of(0x7fffffff);
    const float inverse = finite ? inverse_of(d) : 0.0f;
    i32 n[PIECE_LEN], sum = 0;
    UNROLLED for (u32 k = 0; k < PIECE_LEN; k++) {
        const float y = v[k] * inverse;
        n[k] = truncate(y + with_sign_of(y, 0x1.fffffep-2f)); // half away from zero, as in blocks.cuh
        sum += n[k];
    }
    UNROLLED for (u32 step = 1; step < GROUP / 2; step *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, step);
    const i32 other = __shfl_xor_sync(ALL_LANES, sum, GROUP / 2);
    if (at >= to.cols) return 0;
    u32 high[PIECE_LEN];
    UNROLLED for (u32 k = 0; k < PIECE_LEN; k++) high[k] = static_cast<u32>((n[k] + 128) >> 8);
    const u64 element = row * to.cols + at;
    store(to.parts[0] + element, low_bytes(high[0], high[1], high[2], high[3]));
    store(to.parts[1] + element, low_bytes(n[0], n[1], n[2], n[3]));
    if (at % BLOCK_LEN != 0) return 0;
    store(to.parts[2] + element / BLOCK_LEN * sizeof(float), d);
    const Pair sums{{static_cast<u32>(sum + other), static_cast<u32>(sum)}};
    store(to.parts[3] + element / BLOCK_LEN * sizeof(Pair), sums);
    return finite ? 0 : NOT_FINITE;
}

// Stores four numbers in a form of floats.
template <Form FORM> __device__ inline void put(const Activate &to, u64 row, u32 at, float factor, const float (&v)[PIECE_LEN])
{
    if (at >= to.stride) return;
    const u64 element = row * to.stride + at;
    if constexpr (FORM == F32) {
        store(to.parts[0] + element * sizeof(float), wide_of(v));
    } else if constexpr (FORM == F16) {
        const Pair pair{{to_f16_pair(v[0] * factor, v[1] * factor), to_f16_pair(v[2] * factor, v[3] * factor)}};
        store(to.parts[0] + element * sizeof(f16), pair);
    } else {
        const Pair high{{to_bf16_pair(v[0], v[1]), to_bf16_pair(v[2], v[3])}};
        float left[PIECE_LEN];
        UNROLLED for (u32 k = 0; k < PIECE_LEN; k++) {
            left[k] = v[k] - to_f32(bf16{static_cast<u16>(high.word[k / 2] >> (k % 2 * 16))});
        }
        const Pair low{{to_bf16_pair(left[0], left[1]), to_bf16_pair(left[2], left[3])}};
        store(to.parts[0] + element * sizeof(bf16), high);
        store(to.parts[1] + element * sizeof(bf16), low);
    }
}

// What is done with a row, one after the other, so that the code that reads it is there once: its squares are added up (NORM),
// its largest activation is looked for (F16), it is stored.
enum Pass { SQUARES, LARGEST, STORE };

template <Form FORM> __device__ inline void activate(const Activate &to)
{
    GRANULE_DYNAMIC_SHARED(float, held);
    __shared__ u32 words[WARPS];
    __shared__ float numbers[WARPS];
    u32 raised = 0;
    for (u64 row = blockIdx.y; row < to.rows; row += gridDim.y) {
        const float *a = to.a + (to.numbers == nullptr ? row : to.numbers[row]) * to.cols;
        const float *b = to.source == SWIGLU ? to.b + row * to.cols : to.b;
        float scale = 1.0f, factor = 1.0f;
        bool holds_x = false, finished = to.source != NORM && to.source != SWIGLU;
        for (u32 pass = to.source == NORM ? SQUARES : FORM == F16 ? LARGEST : STORE; pass <= STORE; pass++) {
            if (pass == LARGEST && FORM != F16) continue;
            float sums[PIECE_LEN] = {}, largest = 0.0f;
            // A row's chunks are stored by several blocks; what all of it is needed for each does by itself.
            const u32 skip = pass == STORE ? gridDim.x : 1;
            for (u32 first = pass == STORE ? blockIdx.x * CHUNK : 0; first < to.stride; first += skip * CHUNK) {
                Chunk x = holds_x ? held_chunk(held, first, to.stride) : load_chunk(a, first, to.cols, 0.0f);
                if (pass != SQUARES && !finished) finish(to, first, x, load_chunk(b, first, to.cols, 0.0f), scale);
                if (pass != STORE && to.held != 0) hold_chunk(held, first, to.stride, x);
                UNROLLED for (u32 piece = 0; piece < PIECES; piece++) {
                    const u32 at = piece_at(first, piece);
                    if (pass == STORE) {
                        if constexpr (FORM == FIXED) {
                            raised |= put_fixed(to, row, at, x.v[piece]);
                        } else {
                            put<FORM>(to, row, at, factor, x.v[piece]);
                        }
                        continue;
                    }
                    UNROLLED for (u32 k = 0; k < PIECE_LEN; k++) {
                        if (pass == SQUARES) {
                            sums[k] += x.v[piece][k] * x.v[piece][k];
                        } else {
                            largest = larger_magnitude(largest, x.v[piece][k]);
                        }
                    }
                }
            }
            holds_x = to.held != 0;
            if (pass == SQUARES) {
                const float own = (sums[0] + sums[1]) + (sums[2] + sums[3]);
                const float sum = of_block(own, numbers, [](float x, float y) { return x + y; });
                scale = 1.0f / square_root(sum / static_cast<float>(to.cols) + to.eps);
            } else if (pass == LARGEST) {
                finished = finished || to.held != 0;
                const u32 magnitude = of_block(bits_of(largest) & 0x7fffffff, words, larger);
                const bool finite = magnitude < 0x7f800000;
                const u32 exponent = finite ? exponent_of_factor(magnitude) : 127;
                factor = float_of(exponent << 23);
                if (blockIdx.x == 0 && threadIdx.x == 0) {
                    const float inverse = finite ? float_of((254 - exponent) << 23) : float_of(0x7fffffff);
                    store(to.parts[1] + row * sizeof(float), inverse);
                    if (!finite) raised = NOT_FINITE;
                }
            }
        }
    }
    if (raised != 0) atomicOr(to.flag, raised);
}

extern "C" __global__ void __launch_bounds__(THREADS) activate_f32(const Activate to) { activate<F32>(to); }
extern "C" __global__ void __launch_bounds__(THREADS) activate_fixed(const Activate to) { activate<FIXED>(to); }
extern "C" __global__ void __launch_bounds__(THREADS) activate_f16(const Activate to) { activate<F16>(to); }
extern "C" __global__ void __launch_bounds__(THREADS) activate_bf16(const Activate to) { activate<BF16>(to); }
