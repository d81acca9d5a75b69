// The KV cache as kernels are told it: sequences, their segments, and where one layer's planes are in a row.
//
// The tables lie in device memory, made by the host once a step and the same for all layers; the layer's places come with
// each launch. `granule_ops::KvTable` and `RowsArgument` (`kv_table.rs`) are these structs in Rust.
#pragma once

#include "blocks.cuh"

// Element types of K and V.
constexpr u32 KV_F32 = 0, KV_F16 = 1, KV_BF16 = 2, KV_Q8_0 = 3, KV_Q4_0 = 4;

// The largest head dimension.
constexpr u32 HEAD_MOST = 256;

// One sequence of a step. Its queries are the `queries` tokens from `first_query` on, and the last of its `rows` tokens.
struct KvSequence {
    u8 *base;          // of the group's range; a multiple of 16
    u32 first_segment; // in the table of segments
    u32 segments;
    u32 first_query;
    u32 queries;
    u32 rows;          // tokens in all segments, the queries' own included
    u32 first_turned;  // sum of segments * queries over the sequences before
};
static_assert(sizeof(KvSequence) == 32);

// Tokens that follow one another, at rows that follow one another.
struct KvSegment {
    u32 row;   // physical number of the first
    u32 len;
    u32 start; // the first one's number among the sequence's tokens
    i32 turn;  // positions that its keys should have been rotated further
};
static_assert(sizeof(KvSegment) == 16);

// Where one layer's K and V are. Planes are bytes from a row's start, sinks from the range's base; multiples of 16.
struct KvRows {
    u64 stride;  // bytes from row to row
    u64 rows_at; // byte of row 0 from the base
    u32 sink_k;  // f16, `sink_rows` x kv heads x head_dim
    u32 sink_v;
    u32 k_type, v_type;
    u32 k_quants, k_scales, v_quants, v_scales;
    u32 n_kv_heads, head_dim;
    u32 sink_rows; // rows that are read from the sinks, at most 4
    u32 rope_dims; // elements of a head that are rotated; even
};
static_assert(sizeof(KvRows) == 64);

// Bytes of `n` elements in a plane of quants (or of floats); `n` is whole blocks.
__device__ inline u32 plane_bytes(u32 type, u32 n)
{
    return type == KV_F32 ? 4 * n : type == KV_Q8_0 ? n : type == KV_Q4_0 ? n / 2 : 2 * n;
}

// True for types whose blocks have scales.
__device__ inline bool has_scales(u32 type) { return type >= KV_Q8_0; }

// Weights are 2^LIFT times as large as a softmax's, which keeps small ones out of f16's subnormal numbers. Their sum is as much
// larger.
constexpr float LIFT = 10.0f;

// The largest score of no keys.
__device__ inline float minus_infinity() { return float_of(0xff800000); }

// A transform's tables, kv heads x head_dim (`granule_ops::KvFold`); null where keys, or values, are stored as they are.
struct KvFold {
    const float *constants;
    const float *scales;
    const float *inverses;
};

// Elements of the largest head that a lane has: l, l + 32, ….
constexpr u32 HELD = HEAD_MOST / WARP;

// Rotates a head by the Hadamard matrix of entries 1 and -1, in parts as wide as the largest power of two that divides its
// length: the sums and differences of `granule_ops`' twin, in its order. Lane l has elements l, l + 32, …, zeros from
// `head_dim` on. All lanes of the warp take part.
__device__ inline void hadamard(float (&x)[HELD], u32 head_dim)
{
    const u32 width = head_dim & (0 - head_dim);
    UNROLLED for (u32 half = 1; half < WARP; half *= 2) {
        if (half >= width) continue;
        UNROLLED for (u32 i = 0; i < HELD; i++) {
            const float other = __shfl_xor_sync(ALL_LANES, x[i], half);
            x[i] = (threadIdx.x & half) == 0 ? x[i] + other : other - x[i];
        }
    }
    UNROLLED for (u32 half = WARP; half < HEAD_MOST; half *= 2) {
        if (half >= width) continue;
        UNROLLED for (u32 i = 0; i < HELD; i++) {
            if ((i & half / WARP) != 0) continue;
            const float low = x[i], high = x[i + half / WARP];
            x[i] = low + high;
            x[i + half / WARP] = low - high;
        }
    }
}
