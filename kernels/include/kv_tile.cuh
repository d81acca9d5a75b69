// Tiles of K or V in shared memory: raw rows fetched from the cache, and the f16 that they are converted to, laid out for
// matrices to be loaded from. What attention_prefill.cu says of ranges happens here.
#pragma once

#include "kv.cuh"
#include "tensor.cuh"

// Tokens in a tile.
constexpr u32 KEYS = 64;
// Elements of a head, at most: what there are registers for. Heads of at most half of them skip half of the products.
constexpr u32 DIM = 128;
constexpr u32 MOST_BLOCKS = DIM / BLOCK_LEN;
// Bytes of a tile of f16, whatever the head dimension.
constexpr u32 TILE_BYTES = KEYS * DIM * 2;
static_assert(KEYS * MOST_BLOCKS == THREADS, "each thread fetches one scale");

// K or V of one head.
struct Plane {
    u32 type;
    u32 quants, scales; // bytes from a row's start to this head's first
    u32 row_bytes;      // of this head's quants

    __device__ Plane(const KvRows &rows, bool keys, u32 head)
        : type(keys ? rows.k_type : rows.v_type), row_bytes(plane_bytes(type, rows.head_dim))
    {
        quants = (keys ? rows.k_quants : rows.v_quants) + head * row_bytes;
        scales = (keys ? rows.k_scales : rows.v_scales) + head * (rows.head_dim / BLOCK_LEN) * 2;
    }
    // Whether its rows are the tile as they come.
    __device__ bool direct() const { return type == KV_F16; }
    // Bytes of shared memory for KEYS raw rows.
    __device__ u32 raw_bytes() const { return direct() ? TILE_BYTES : KEYS * row_bytes; }
    // The power of two of the threads that fetch one row, at most 32.
    __device__ u32 lanes_log2() const
    {
        const u32 pieces = (direct() ? DIM * 2 : row_bytes) / 16;
        return (pieces > 1) + (pieces > 2) + (pieces > 4) + (pieces > 8) + (pieces > 16);
    }
};

// 16-byte pieces of a row of DIM f16 lie in an order of their own in each of eight rows, so that eight rows' pieces of one
// place are in different banks.
__device__ inline u32 tile_place(u32 row, u32 piece)
{
    return row * (DIM * 2) + (piece ^ (row & 7)) * 16;
}

// Where a lane's row of matrices is in a tile: row `row` and its 16-byte piece `piece` (0 or 1), and the same 16 rows and two
// pieces further on. A piece's place is piece ^ (row & 7), and two more are another bit.
struct FragmentPlaces {
    SharedPlace start;
    u32 first;

    __device__ FragmentPlaces(u8 *tile, u32 row, u32 piece)
        : start(tile + row * (DIM * 2)), first(again((piece ^ (row & 7)) * 16))
    {
    }
    __device__ SharedPlace at(u32 rows_16, u32 pieces_2) const
    {
        return start + (first ^ pieces_2 * 32) + rows_16 * (16 * DIM * 2);
    }
};

// Starts the copies of `n` rows (at most KEYS) of one plane to `raw`. f16 goes where the tile's pieces belong, zeros around
// it. Also loads the scale of row threadIdx.x / 4, block threadIdx.x % 4.
__device__ inline f16 fetch(u8 *raw, const Plane &plane, const u8 *rows, u64 stride, u32 n, u32 head_dim)
{
    const u32 pieces = plane.row_bytes / 16, lanes_log2 = plane.lanes_log2();
    const u32 piece = threadIdx.x & ((1u << lanes_log2) - 1);
    const u8 *from = rows + plane.quants + piece * 16;
    const SharedPlace to = raw;
    ROLLED for (u32 row = threadIdx.x >> lanes_log2; row < KEYS; row += THREADS >> lanes_log2) {
        const u32 at = plane.direct() ? tile_place(row, piece) : row * plane.row_bytes + piece * 16;
        if (row < n && piece < pieces) {
            copy_async(to + at, from + row * stride);
        } else if (plane.direct()) {
            store(raw + at, Wide{});
        }
    }
    const u32 row = threadIdx.x / MOST_BLOCKS, block = threadIdx.x % MOST_BLOCKS;
    if (!has_scales(plane.type) || row >= n || block * BLOCK_LEN >= head_dim) return f16{0};
    return load<f16>(rows + row * stride + plane.scales + block * 2);
}

// What a tile is converted from.
struct Source {
    const Plane &plane;
    const u8 *raw;
    const f16 *scales;
    const u8 *sinks; // of the tile's first row, where that is one of them
    u64 sink_stride;
    u32 head_dim;
    u32 rows;      // of the tile, the rest is zeros
    u32 sink_rows; // of those, from the sinks
};

// Converts a tile to f16, all elements times `factor`; gives the largest magnitude that this thread has met, or that there
// can be with the scales that it has met, times it.
__device__ inline float convert(u8 *tile, const Source &from, float factor)
{
    constexpr u32 PIECES = DIM / 8;
    const u32 piece = threadIdx.x % PIECES;
    const bool inside = piece * 8 < from.head_dim;
    float largest = 0.0f;
    ROLLED for (u32 row = threadIdx.x / PIECES; row < KEYS; row += THREADS / PIECES) {
        float x[8] = {};
        if (inside && row < from.rows) {
            const bool sink = row < from.sink_rows;
            const u8 *raw = from.raw + row * from.plane.row_bytes;
            const u32 type = sink ? KV_F16 : from.plane.type;
            if (has_scales(type)) {
                const float d = to_f32(from.scales[row * MOST_BLOCKS + piece / 4]) * factor;
                if (type == KV_Q8_0) {
                    const u8 *q = raw + piece * 8;
                    Format<BlockQ8_0>::values(d, load<u32>(q), x);
                    Format<BlockQ8_0>::values(d, load<u32>(q + 4), x + 4);
                } else {
                    // Pieces 0 and 1 of a block are its low nibbles, 2 and 3 the high ones of the same bytes.
                    const u8 *q = raw + piece / 4 * (BLOCK_LEN / 2) + piece % 2 * 8;
                    const u32 shift = piece % 4 / 2 * 4;
                    Format<BlockQ4_0>::values(d, load<u32>(q) >> shift & 0x0f0f0f0f, x);
                    Format<BlockQ4_0>::values(d, load<u32>(q + 4) >> shift & 0x0f0f0f0f, x + 4);
                }
                largest = larger_of(largest, magnitude_of(d) * 128.0f);
            } else {
                if (type == KV_F32) {
                    const Wide low = load<Wide>(raw + piece * 32), high = load<Wide>(raw + piece * 32 + 16);
                    UNROLLED for (u32 i = 0; i < 4; i++) {
                        x[i] = float_of(low.word[i]);
                        x[4 + i] = float_of(high.word[i]);
                    }
                } else {
                    const Wide wide = load<Wide>((sink ? from.sinks + row * from.sink_stride : raw) + piece * 16);
                    UNROLLED for (u32 i = 0; i < 8; i++) {
                        const u16 half = static_cast<u16>(wide.word[i / 2] >> (i % 2 * 16));
                        x[i] = sink ? to_f32(f16{half}) : to_f32(bf16{half});
                    }
                }
                UNROLLED for (u32 i = 0; i < 8; i++) {
                    x[i] *= factor;
                    largest = larger_of(largest, magnitude_of(x[i]));
                }
            }
        }
        Wide packed;
        UNROLLED for (u32 i = 0; i < 4; i++) packed.word[i] = to_f16_pair(x[2 * i], x[2 * i + 1]);
        store(tile + tile_place(row, piece), packed);
    }
    return largest;
}
