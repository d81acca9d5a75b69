// Rows in device memory, and tiles of them in shared memory: how every kernel of the block formats reads and writes.
//
// A thread block takes one tile of a row at a time into shared memory and out of it again in 16-byte pieces, and works
// on the tile in between. So global memory sees whole, coalesced 16-byte accesses whatever the layout; only the first
// and the last few bytes of a ggml tile, whose 34- and 18-byte blocks start anywhere, go two by two.
#pragma once

#include "blocks.cuh"

// Blocks of 32 elements in a tile. A multiple of 8, so that a tile's scales are whole 16-byte pieces.
constexpr u32 TILE = 128;

// Copies `bytes` (even, at most MOST) between two even addresses that are equally far past a multiple of 16; all
// threads take part.
template <u32 MOST> __device__ inline void copy_wide(u8 *to, const u8 *from, u32 bytes)
{
    constexpr u32 ROUND = THREADS * sizeof(Wide);
    const u32 before = (sizeof(Wide) - misalignment(from)) % sizeof(Wide);
    const u32 head = before < bytes ? before : bytes;
    const u32 body = (bytes - head) / sizeof(Wide) * sizeof(Wide);
    UNROLLED for (u32 start = 0; start < MOST; start += ROUND) {
        const u32 i = start + threadIdx.x * sizeof(Wide);
        if (i < body) store(to + head + i, load<Wide>(from + head + i));
    }
    // At most 14 bytes before the body and 14 behind it.
    const u32 i = threadIdx.x * 2;
    if (i < bytes - body) {
        const u32 at = i < head ? i : i + body;
        store(to + at, load<u16>(from + at));
    }
}

// Rows in the ggml layout: whole blocks one behind the other. `Byte` is `u8`, or `const u8` where rows are only read.
template <typename Block, typename Byte> struct Ggml {
    Byte *base; // row 0; even
    u64 stride; // bytes from one row to the next; even

    // Bytes of shared memory for a tile: it keeps the distance from a multiple of 16 that it has in global memory.
    static constexpr u32 TILE_BYTES = TILE * sizeof(Block) + sizeof(Wide);

    struct Tile {
        Byte *global;
        u8 *shared;

        __device__ f16 scale(u32 block) const { return load<f16>(shared + block * sizeof(Block)); }
        __device__ void set_scale(u32 block, f16 d) const { store(shared + block * sizeof(Block), d); }

        // Four bytes of a block's quants, from byte `at`, a multiple of 4.
        __device__ u32 quants(u32 block, u32 at) const
        {
            const u8 *q = shared + block * sizeof(Block) + sizeof(f16) + at;
            return load<u16>(q) | static_cast<u32>(load<u16>(q + 2)) << 16;
        }
        __device__ void set_quants(u32 block, u32 at, u32 word) const
        {
            u8 *q = shared + block * sizeof(Block) + sizeof(f16) + at;
            store(q, static_cast<u16>(word));
            store(q + 2, static_cast<u16>(word >> 16));
        }

        // Global to shared memory and back, the first `blocks` of the tile; a barrier has to follow, or come before.
        __device__ void fetch(u32 blocks) const { copy_wide<TILE_BYTES>(shared, global, blocks * sizeof(Block)); }
        __device__ void write_back(u32 blocks) const { copy_wide<TILE_BYTES>(global, shared, blocks * sizeof(Block)); }
    };

    // The tile of row `row` that begins with block `first`.
    __device__ Tile tile(u8 *memory, u64 row, u64 first) const
    {
        Byte *global = base + row * stride + first * sizeof(Block);
        return Tile{global, memory + misalignment(global)};
    }
};

// Planar rows: all quants of a row in one plane, all its scales in another. What pads a plane is not touched.
template <typename Block, typename Byte> struct Planar {
    Byte *base; // row 0; a multiple of 16
    u64 stride; // bytes from one row to the next; a multiple of 16
    u64 quants; // bytes from the start of a row to its quants; a multiple of 16
    u64 scales; // bytes from the start of a row to its scales; a multiple of 16

    static constexpr u32 QUANTS = Format<Block>::QUANTS;
    static constexpr u32 TILE_BYTES = TILE * (QUANTS + sizeof(f16));

    struct Tile {
        Byte *global_quants;
        Byte *global_scales;
        u8 *shared;

        __device__ u8 *shared_scales() const { return shared + TILE * QUANTS; }
        __device__ f16 scale(u32 block) const { return load<f16>(shared_scales() + block * sizeof(f16)); }
        __device__ void set_scale(u32 block, f16 d) const { store(shared_scales() + block * sizeof(f16), d); }

        // Four bytes of a block's quants, from byte `at`, a multiple of 4.
        __device__ u32 quants(u32 block, u32 at) const { return load<u32>(shared + block * QUANTS + at); }
        __device__ void set_quants(u32 block, u32 at, u32 word) const { store(shared + block * QUANTS + at, word); }

        // Global to shared memory and back, the first `blocks` of the tile; a barrier has to follow, or come before.
        __device__ void fetch(u32 blocks) const
        {
            copy_wide<TILE * QUANTS>(shared, global_quants, blocks * QUANTS);
            copy_wide<TILE * sizeof(f16)>(shared_scales(), global_scales, blocks * sizeof(f16));
        }
        __device__ void write_back(u32 blocks) const
        {
            copy_wide<TILE * QUANTS>(global_quants, shared, blocks * QUANTS);
            copy_wide<TILE * sizeof(f16)>(global_scales, shared_scales(), blocks * sizeof(f16));
        }
    };

    // The tile of row `row` that begins with block `first`.
    __device__ Tile tile(u8 *memory, u64 row, u64 first) const
    {
        Byte *start = base + row * stride;
        return Tile{start + quants + first * QUANTS, start + scales + first * sizeof(f16), memory};
    }
};

// Calls `work(row, first, blocks)` for every tile of `rows` rows of `blocks` blocks that is this thread block's:
// `first` is the tile's first block in its row, `blocks` how many it has. Grids of any size do all of the work, once.
template <typename Work> __device__ inline void for_each_tile(u64 rows, u64 blocks, Work work)
{
    for (u64 row = blockIdx.y; row < rows; row += gridDim.y) {
        for (u64 first = u64{blockIdx.x} * TILE; first < blocks; first += u64{gridDim.x} * TILE) {
            const u64 left = blocks - first;
            work(row, first, left < TILE ? static_cast<u32>(left) : TILE);
        }
    }
}

// Float rows, 16 bytes at a time: how many elements that is, and from and to f32.
template <typename Float> struct Floats;

template <> struct Floats<float> {
    static constexpr u32 COUNT = 4;

    __device__ static float get(const Wide &wide, u32 i) { return float_of(wide.word[i]); }
    __device__ static Wide pack(const float (&x)[COUNT])
    {
        return Wide{{bits_of(x[0]), bits_of(x[1]), bits_of(x[2]), bits_of(x[3])}};
    }
};

template <> struct Floats<f16> {
    static constexpr u32 COUNT = 8;

    __device__ static float get(const Wide &wide, u32 i)
    {
        return to_f32(f16{static_cast<u16>(wide.word[i / 2] >> (i % 2 * 16))});
    }
    __device__ static Wide pack(const float (&x)[COUNT])
    {
        return Wide{
            {to_f16_pair(x[0], x[1]), to_f16_pair(x[2], x[3]), to_f16_pair(x[4], x[5]), to_f16_pair(x[6], x[7])}};
    }
};

template <> struct Floats<bf16> {
    static constexpr u32 COUNT = 8;

    __device__ static float get(const Wide &wide, u32 i)
    {
        return to_f32(bf16{static_cast<u16>(wide.word[i / 2] >> (i % 2 * 16))});
    }
    __device__ static Wide pack(const float (&x)[COUNT])
    {
        return Wide{
            {to_bf16_pair(x[0], x[1]), to_bf16_pair(x[2], x[3]), to_bf16_pair(x[4], x[5]), to_bf16_pair(x[6], x[7])}};
    }
};
