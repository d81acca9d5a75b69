// One warp's attention over 16 keys at a time for up to 8 queries, on tensor cores: how each type of key is scored and
// each type of value is summed up. Five of one and five of the other, so any pair of them is two calls.
//
// Queries are rows of a product with the keys, values rows of a product with the weights, so that what comes out of one
// lies as it goes into the other (lane = 4 g + t, `tensor.cuh`):
//
//   scores, 16 x 8    queries (g) x keys (2t, 2t+1): a lane has query g and, of 16 keys, 2t, 2t+1, 2t+8, 2t+9
//   weights, 16 x 8   keys x queries (g): the same four numbers, as they lie
//   sums, 16 x 8      dims x queries (2t, 2t+1)
//
// A 16-bit operand would round queries and weights to 11 bits, or 8. So each goes in as two: what it rounds to, and what
// is left over. For queries that costs nothing, since 8 of them fill half of the 16 rows: row g has the first term, row
// g + 8 the second, and the lane that has the one sum has the other. Weights take a second product. Blocks meet their scale
// in f32, outside the products, where elements are whole numbers and exact.
#pragma once

#include "kv.cuh"
#include "tensor.cuh"
#include "tensor_s8.cuh"

// Keys in a tile, and query rows ("columns" of the sums) of a warp.
constexpr u32 TILE_KEYS = 16;
constexpr u32 COLUMNS = 8;
// Between rows of a tile in shared memory: what makes 8 rows of 16 bytes, and 4 of 32, fall into different banks.
constexpr u32 ROW_PAD = 16;
// What the queries are written as for a type of keys.
constexpr u32 AS_F16 = 0, AS_BF16 = 1, AS_S8 = 2;

__device__ inline u32 query_form(u32 k_type)
{
    return k_type == KV_F16 ? AS_F16 : k_type >= KV_Q8_0 ? AS_S8 : AS_BF16;
}

// A tile in shared memory: rows of this head, of keys and of values, and 16 bytes for each key and each value with the scales.
struct Tile {
    const u8 *k;
    const u8 *v;
    const u8 *k_scales; // of this head
    const u8 *v_scales;
    u32 mask; // row i lies at i & mask: 15, or 3 for sinks, which are f16
};

// Bytes of a head in a row, in the cache and, padded, in a tile.
template <u32 DIM, u32 TYPE> constexpr u32 ROW_BYTES = TYPE == KV_F32 ? 4 * DIM
    : TYPE == KV_Q8_0                                              ? DIM
    : TYPE == KV_Q4_0                                              ? DIM / 2
                                                                   : 2 * DIM;
template <u32 DIM, u32 TYPE> constexpr u32 TILE_STRIDE = ROW_BYTES<DIM, TYPE> + ROW_PAD;

// Where row i of a tile is.
template <u32 DIM, u32 TYPE> __device__ inline u32 row_at(u32 i, const Tile &tile)
{
    return (TYPE == KV_F16 ? i & tile.mask : i) * TILE_STRIDE<DIM, TYPE>;
}

// A head's scales, which lie together: of 64 dims 4 bytes, of 128 dims 8.
template <u32 DIM> struct alignas(DIM / 16) Scales {
    u16 bits[DIM / BLOCK_LEN];

    __device__ float get(u32 i) const { return to_f32(f16{bits[i]}); }
};

// The queries of a warp as the left operand: lane 4g+t has its part of query g.
template <u32 DIM> struct Queries {
    u32 word[DIM / 4];
    float unit; // what scores are multiplied by: the softmax's scale, log2(e), and what the queries were divided by
    float constant; // what is added to them then
};

// The words of four 16-bit operands and what is left over of each pair: first and second term.
template <u32 FORM> __device__ inline u32 rounded_pair(float low, float high)
{
    return FORM == AS_F16 ? to_f16_pair(low, high) : to_bf16_pair(low, high);
}

template <u32 FORM> __device__ inline float of_pair(u32 pair, u32 half)
{
    const u16 bits = static_cast<u16>(pair >> (16 * half));
    return FORM == AS_F16 ? to_f32(f16{bits}) : to_f32(bf16{bits});
}

template <u32 FORM> __device__ inline u32 left_over(u32 pair, float low, float high)
{
    return rounded_pair<FORM>(low - of_pair<FORM>(pair, 0), high - of_pair<FORM>(pair, 1));
}

// The largest magnitude over the four lanes that have one query; NaN where there is one.
__device__ inline float largest_of_query(float x)
{
    x = larger_magnitude(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return larger_magnitude(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

__device__ inline float sum_of_query(float x)
{
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// Loads query g from `from` (DIM numbers; null: zeros) as two 16-bit terms. Of each 32 dims, lane t has 8t to 8t+7, as the
// keys' loads of 16 bytes give them. Divided by a power of two, so that f16 holds both terms of whatever size.
template <u32 DIM, u32 FORM> __device__ inline void load_halves(Queries<DIM> &to, const float *from, float scale)
{
    const u32 t = threadIdx.x % 4;
    float largest = 0.0f;
    Wide x;
    UNROLLED for (u32 i = 0; i < DIM / 32; i++) {
        UNROLLED for (u32 k = 0; k < 8; k++) {
            if (k % 4 == 0) x = from == nullptr ? Wide{} : load<Wide>(from + 32 * i + 8 * t + k);
            to.word[8 * i + k] = x.word[k % 4];
            largest = larger_magnitude(largest, float_of(x.word[k % 4]));
        }
    }
    // 2^(8 - e) for a largest magnitude from 2^e to below 2^(e+1), within what has an inverse.
    const u32 exponent = bits_of(largest_of_query(largest)) >> 23;
    const u32 clamped = exponent < 20 ? 20 : exponent > 250 ? 250 : exponent;
    const float times = float_of((262 - clamped) << 23), unit = float_of((clamped - 8) << 23);
    to.unit = scale * unit;
    UNROLLED for (u32 i = 0; i < DIM / 32; i++) {
        UNROLLED for (u32 k = 0; k < 8; k += 2) {
            const float low = float_of(to.word[8 * i + k]) * times, high = float_of(to.word[8 * i + k + 1]) * times;
            const u32 pair = rounded_pair<FORM>(low, high);
            to.word[8 * i + k] = pair;
            to.word[8 * i + k + 1] = left_over<FORM>(pair, low, high);
        }
    }
}

// As two 8-bit terms: of each block of 32, x is unit * (254 h + l) to within unit / 2. Six words a block: first and second
// terms of dims 4t to 4t+3, then of 16 further on; the unit; and what 8 off each of a q4_0 key's quants comes to.
template <u32 DIM> __device__ inline void load_bytes(Queries<DIM> &to, const float *from, float scale, bool nibbles)
{
    const u32 t = threadIdx.x % 4;
    UNROLLED for (u32 i = 0; i < DIM / BLOCK_LEN; i++) {
        float x[8];
        float largest = 0.0f;
        Wide four;
        UNROLLED for (u32 k = 0; k < 8; k++) {
            if (k % 4 == 0) four = from == nullptr ? Wide{} : load<Wide>(from + 32 * i + 4 * t + k * 4);
            x[k] = float_of(four.word[k % 4]);
            largest = larger_magnitude(largest, x[k]);
        }
        const float unit = largest_of_query(largest) / 127.0f, inverse = inverse_of(unit);
        i32 first[8], second[8], sum = 0;
        UNROLLED for (u32 k = 0; k < 8; k++) {
            const float y = x[k] * inverse;
            first[k] = nearest(y);
            second[k] = nearest((y - static_cast<float>(first[k])) * 254.0f);
            sum += 254 * first[k] + second[k];
        }
        sum += __shfl_xor_sync(ALL_LANES, sum, 1);
        sum += __shfl_xor_sync(ALL_LANES, sum, 2);
        UNROLLED for (u32 h = 0; h < 2; h++) {
            const i32 *a = first + 4 * h, *b = second + 4 * h;
            to.word[6 * i + 2 * h] = low_bytes(u32(a[0]), u32(a[1]), u32(a[2]), u32(a[3]));
            to.word[6 * i + 2 * h + 1] = low_bytes(u32(b[0]), u32(b[1]), u32(b[2]), u32(b[3]));
        }
        to.word[6 * i + 4] = bits_of(unit / 254.0f);
        to.word[6 * i + 5] = u32(nibbles ? -8 * sum : 0);
    }
    to.unit = scale;
}

template <u32 DIM>
__device__ inline void load_queries(Queries<DIM> &to, const float *from, float constant, float scale, u32 k_type)
{
    switch (query_form(k_type)) {
    case AS_F16: load_halves<DIM, AS_F16>(to, from, scale); break;
    case AS_BF16: load_halves<DIM, AS_BF16>(to, from, scale); break;
    default: load_bytes<DIM>(to, from, scale, k_type == KV_Q4_0); break;
    }
    to.constant = constant * scale;
}

template <u32 FORM> __device__ inline void multiply_add_halves(MatrixC &c, const MatrixA &a, const MatrixB &b)
{
    if constexpr (FORM == AS_F16) {
        multiply_add_f16(c, a, b);
    } else {
        multiply_add_bf16(c, a, b);
    }
}

// One pair of f32 as three bf16 pairs, which leave nothing over: 8 bits each.
__device__ inline void split_f32(float low, float high, u32 (&pair)[3])
{
    UNROLLED for (u32 i = 0; i < 3; i++) {
        pair[i] = to_bf16_pair(low, high);
        low -= of_pair<AS_BF16>(pair[i], 0);
        high -= of_pair<AS_BF16>(pair[i], 1);
    }
}

// Scores of keys of 16 or 32 bits. `s` is query g with keys 2t, 2t+1, 2t+8, 2t+9.
template <u32 DIM, u32 TYPE> __device__ inline void score_floats(float (&s)[4], const Queries<DIM> &q, const Tile &tile)
{
    constexpr u32 FORM = TYPE == KV_F16 ? AS_F16 : AS_BF16, BYTES = TYPE == KV_F32 ? 4 : 2;
    const u32 g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    UNROLLED for (u32 n = 0; n < 2; n++) {
        const u8 *key = tile.k + row_at<DIM, TYPE>(g + 8 * n, tile) + 8 * BYTES * t;
        MatrixC c{};
        UNROLLED for (u32 i = 0; i < DIM / 32; i++) {
            const u32 *w = q.word + 8 * i;
            const MatrixA even{{w[0], w[1], w[2], w[3]}}, odd{{w[4], w[5], w[6], w[7]}};
            const Wide x = load<Wide>(key + 32 * BYTES * i);
            if constexpr (TYPE == KV_F32) {
                const Wide y = load<Wide>(key + 32 * BYTES * i + sizeof(Wide));
                u32 p[4][3];
                split_f32(float_of(x.word[0]), float_of(x.word[1]), p[0]);
                split_f32(float_of(x.word[2]), float_of(x.word[3]), p[1]);
                split_f32(float_of(y.word[0]), float_of(y.word[1]), p[2]);
                split_f32(float_of(y.word[2]), float_of(y.word[3]), p[3]);
                UNROLLED for (u32 k = 0; k < 3; k++) {
                    multiply_add_halves<FORM>(c, even, MatrixB{{p[0][k], p[1][k]}});
                    multiply_add_halves<FORM>(c, odd, MatrixB{{p[2][k], p[3][k]}});
                }
            } else {
                multiply_add_halves<FORM>(c, even, MatrixB{{x.word[0], x.word[1]}});
                multiply_add_halves<FORM>(c, odd, MatrixB{{x.word[2], x.word[3]}});
            }
        }
        s[2 * n] = c.value[0] + c.value[2];
        s[2 * n + 1] = c.value[1] + c.value[3];
    }
}

// Scores of keys in blocks: whole numbers, exact, until they meet the scales of key and query.
template <u32 DIM, u32 TYPE> __device__ inline void score_blocks(float (&s)[4], const Queries<DIM> &q, const Tile &tile)
{
    const u32 g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    UNROLLED for (u32 n = 0; n < 2; n++) {
        const u8 *key = tile.k + row_at<DIM, TYPE>(g + 8 * n, tile) + 4 * t;
        Scales<DIM> scales[2];
        UNROLLED for (u32 k = 0; k < 2; k++) {
            scales[k] = load<Scales<DIM>>(tile.k_scales + (8 * n + 2 * t + k) * sizeof(Wide));
        }
        s[2 * n] = s[2 * n + 1] = 0.0f;
        UNROLLED for (u32 i = 0; i < DIM / BLOCK_LEN; i++) {
            const u32 *w = q.word + 6 * i;
            u32 low, high;
            if constexpr (TYPE == KV_Q8_0) {
                low = load<u32>(key + 32 * i);
                high = load<u32>(key + 32 * i + 16);
            } else {
                const u32 both = load<u32>(key + 16 * i);
                low = both & 0x0f0f0f0f;
                high = both >> 4 & 0x0f0f0f0f;
            }
            MatrixC32 c{{0, 0, i32(w[5]), i32(w[5])}};
            multiply_add_s8(c, MatrixA{{w[0], w[1], w[2], w[3]}}, MatrixB{{low, high}});
            UNROLLED for (u32 k = 0; k < 2; k++) {
                const float sum = static_cast<float>(254 * c.value[k] + c.value[2 + k]);
                s[2 * n + k] = fused(sum * scales[k].get(i), float_of(w[4]), s[2 * n + k]);
            }
        }
    }
}

template <u32 DIM> __device__ inline void score(float (&s)[4], const Queries<DIM> &q, const Tile &tile, u32 type)
{
    switch (type) {
    case KV_F32: score_floats<DIM, KV_F32>(s, q, tile); break;
    case KV_F16: score_floats<DIM, KV_F16>(s, q, tile); break;
    case KV_BF16: score_floats<DIM, KV_BF16>(s, q, tile); break;
    case KV_Q8_0: score_blocks<DIM, KV_Q8_0>(s, q, tile); break;
    default: score_blocks<DIM, KV_Q4_0>(s, q, tile); break;
    }
}

// Weighted sums of values: part [i][h] of 16 dims has row g (dim 32 i + 16 h + 2 g) and row g + 8 (the next dim), which is
// how q4_0 keeps them: byte 2g of a block has one of h = 0 and one of h = 1.
template <u32 DIM> struct Sums {
    MatrixC part[DIM / 32][2];
};

// The four numbers of a lane as the right operand, in two terms.
template <u32 FORM> __device__ inline void weights(MatrixB (&to)[2], const float (&p)[4])
{
    UNROLLED for (u32 i = 0; i < 2; i++) {
        to[0].word[i] = rounded_pair<FORM>(p[2 * i], p[2 * i + 1]);
        to[1].word[i] = left_over<FORM>(to[0].word[i], p[2 * i], p[2 * i + 1]);
    }
}

// Two neighbouring numbers.
struct alignas(8) Two {
    float x[2];
};

// Rows of the tile that a lane has keys of: 2t, 2t+1, 2t+8, 2t+9.
__device__ inline u32 key_of(u32 k) { return threadIdx.x % 4 * 2 + k % 2 + k / 2 * 8; }

// Values of 16 or 32 bits.
template <u32 DIM, u32 TYPE> __device__ inline void add_floats(Sums<DIM> &sums, const float (&p)[4], const Tile &tile)
{
    constexpr u32 FORM = TYPE == KV_F16 ? AS_F16 : AS_BF16, BYTES = TYPE == KV_F32 ? 4 : 2;
    const u32 g = threadIdx.x % WARP / 4;
    const u8 *value[4];
    UNROLLED for (u32 k = 0; k < 4; k++) value[k] = tile.v + row_at<DIM, TYPE>(key_of(k), tile) + 2 * BYTES * g;
    MatrixB b[2];
    weights<FORM>(b, p);
    UNROLLED for (u32 i = 0; i < DIM / 16; i++) {
        MatrixC &sum = sums.part[i / 2][i % 2];
        if constexpr (TYPE == KV_F32) {
            Two x[4];
            UNROLLED for (u32 k = 0; k < 4; k++) x[k] = load<Two>(value[k] + 16 * BYTES * i);
            u32 w[4][3];
            split_f32(x[0].x[0], x[1].x[0], w[0]);
            split_f32(x[0].x[1], x[1].x[1], w[1]);
            split_f32(x[2].x[0], x[3].x[0], w[2]);
            split_f32(x[2].x[1], x[3].x[1], w[3]);
            UNROLLED for (u32 k = 0; k < 3; k++) {
                const MatrixA a{{w[0][k], w[1][k], w[2][k], w[3][k]}};
                multiply_add_halves<FORM>(sum, a, b[0]);
                multiply_add_halves<FORM>(sum, a, b[1]);
            }
        } else {
            u32 x[4];
            UNROLLED for (u32 k = 0; k < 4; k++) x[k] = load<u32>(value[k] + 16 * BYTES * i);
            const MatrixA a{{permuted<0x5410>(x[0], x[1]), permuted<0x7632>(x[0], x[1]), permuted<0x5410>(x[2], x[3]),
                             permuted<0x7632>(x[2], x[3])}};
            multiply_add_halves<FORM>(sum, a, b[0]);
            multiply_add_halves<FORM>(sum, a, b[1]);
        }
    }
}

// Two whole numbers as bf16, from bytes 0 and 2 of a word. 128 + n, for n below 128, is the bf16 0x4300 | n.
__device__ inline u32 from_bytes(u32 word)
{
    return exact_sum_bf16((word & 0x007f007f) | 0x43004300, (word & 0x00800080) | 0xc300c300); // - 128, or - 256
}

// And from nibbles with 8 added.
__device__ inline u32 from_nibbles(u32 word)
{
    return exact_sum_bf16((word & 0x000f000f) | 0x43004300, 0xc308c308); // - 136
}

// Values in blocks: whole numbers, whose scale the weights take.
template <u32 DIM, u32 TYPE> __device__ inline void add_blocks(Sums<DIM> &sums, const float (&p)[4], const Tile &tile)
{
    const u32 g = threadIdx.x % WARP / 4;
    const u8 *value[4];
    Scales<DIM> scales[4];
    UNROLLED for (u32 k = 0; k < 4; k++) {
        value[k] = tile.v + row_at<DIM, TYPE>(key_of(k), tile) + 2 * g;
        scales[k] = load<Scales<DIM>>(tile.v_scales + key_of(k) * sizeof(Wide));
    }
    UNROLLED for (u32 i = 0; i < DIM / BLOCK_LEN; i++) {
        float scaled[4];
        UNROLLED for (u32 k = 0; k < 4; k++) scaled[k] = p[k] * scales[k].get(i);
        MatrixB b[2];
        weights<AS_BF16>(b, scaled);
        MatrixA a[2];
        if constexpr (TYPE == KV_Q8_0) {
            UNROLLED for (u32 h = 0; h < 2; h++) {
                u32 x[4];
                UNROLLED for (u32 k = 0; k < 4; k++) x[k] = load<u16>(value[k] + 32 * i + 16 * h);
                a[h] = MatrixA{{from_bytes(permuted<0x0400>(x[0], x[1])), from_bytes(permuted<0x0501>(x[0], x[1])),
                                from_bytes(permuted<0x0400>(x[2], x[3])), from_bytes(permuted<0x0501>(x[2], x[3]))}};
            }
        } else {
            u32 x[4];
            UNROLLED for (u32 k = 0; k < 4; k++) x[k] = load<u16>(value[k] + 16 * i);
            const u32 w[4] = {permuted<0x0400>(x[0], x[1]), permuted<0x0501>(x[0], x[1]), permuted<0x0400>(x[2], x[3]),
                              permuted<0x0501>(x[2], x[3])};
            UNROLLED for (u32 k = 0; k < 4; k++) {
                a[0].word[k] = from_nibbles(w[k]);
                a[1].word[k] = from_nibbles(w[k] >> 4);
            }
        }
        UNROLLED for (u32 h = 0; h < 2; h++) {
            multiply_add_bf16(sums.part[i][h], a[h], b[0]);
            multiply_add_bf16(sums.part[i][h], a[h], b[1]);
        }
    }
}

template <u32 DIM> __device__ inline void add_values(Sums<DIM> &sums, const float (&p)[4], const Tile &tile, u32 type)
{
    switch (type) {
    case KV_F32: add_floats<DIM, KV_F32>(sums, p, tile); break;
    case KV_F16: add_floats<DIM, KV_F16>(sums, p, tile); break;
    case KV_BF16: add_floats<DIM, KV_BF16>(sums, p, tile); break;
    case KV_Q8_0: add_blocks<DIM, KV_Q8_0>(sums, p, tile); break;
    default: add_blocks<DIM, KV_Q4_0>(sums, p, tile); break;
    }
}
