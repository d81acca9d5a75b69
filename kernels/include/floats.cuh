// Rows of f32 as a thread block reads them, chunk by chunk, and what all its threads find out together.
#pragma once

#include "intrinsics.cuh"

// Elements of a chunk: a thread has four pieces of four, each piece beside those of its neighbours, all in flight together.
constexpr u32 PIECE_LEN = 4;
constexpr u32 PIECES = 4;
constexpr u32 CHUNK = PIECES * PIECE_LEN * THREADS;

// Four floats as 16 bytes.
__device__ inline Wide wide_of(const float (&x)[PIECE_LEN])
{
    return Wide{{bits_of(x[0]), bits_of(x[1]), bits_of(x[2]), bits_of(x[3])}};
}

// A thread's elements of a chunk.
struct Chunk {
    float v[PIECES][PIECE_LEN];
};

// Where piece `i` of this thread begins in the row, of the chunk that begins at `first`.
__device__ inline u32 piece_at(u32 first, u32 i) { return first + (i * THREADS + threadIdx.x) * PIECE_LEN; }

// The chunk of a row of `cols` floats that begins at `first`; elements past the row's end are `beyond`. Reads 16 bytes at a time
// where rows of that length, one behind the other, all begin at a multiple of 16, as the first one has to.
__device__ inline Chunk load_chunk(const float *row, u32 first, u32 cols, float beyond)
{
    Chunk chunk;
    if (cols % PIECE_LEN == 0) {
        UNROLLED for (u32 i = 0; i < PIECES; i++) {
            const u32 at = piece_at(first, i);
            Wide wide{{bits_of(beyond), bits_of(beyond), bits_of(beyond), bits_of(beyond)}};
            if (at < cols) wide = load<Wide>(row + at);
            UNROLLED for (u32 k = 0; k < PIECE_LEN; k++) chunk.v[i][k] = float_of(wide.word[k]);
        }
    } else {
        UNROLLED for (u32 i = 0; i < PIECES; i++) {
            UNROLLED for (u32 k = 0; k < PIECE_LEN; k++) {
                const u32 at = piece_at(first, i) + k;
                chunk.v[i][k] = at < cols ? row[at] : beyond;
            }
        }
    }
    return chunk;
}

// Warps of a thread block.
constexpr u32 WARPS = THREADS / WARP;

// `x` of all threads of the block put together by `both`, for all of them. `room` has a word for each warp and is free again
// afterwards. The order is fixed; all threads take part.
template <typename T, typename Both> __device__ inline T of_block(T x, T *room, Both both)
{
    UNROLLED for (u32 step = 1; step < WARP; step *= 2) x = both(x, __shfl_xor_sync(ALL_LANES, x, static_cast<int>(step)));
    if (threadIdx.x % WARP == 0) room[threadIdx.x / WARP] = x;
    __syncthreads();
    T all = room[0];
    UNROLLED for (u32 warp = 1; warp < WARPS; warp++) all = both(all, room[warp]);
    __syncthreads();
    return all;
}
