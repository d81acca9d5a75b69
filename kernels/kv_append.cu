// Appends the keys and values of a step to the cache: rotate, transform, encode and store in one pass, all sequences and
// both K and V of one layer in one launch.
//
//   k, v          query tokens of all sequences x kv heads x head_dim, f32, dense; keys are not rotated yet. Multiples of 16.
//   angles        query tokens x rope_dims: cosine and sine of each adjacent pair
//   keys, values  the transforms of each
//   flag          one word: bit 0 is set where an element is NaN or infinite, bit 1 where an f16, a bf16 or a scale overflows
// Grid: x over heads of tokens, 8 (warps) to a block, y over sequences; any size does all of the work. Block: 256 threads.
//
// A warp has one head of K or of V of one token; lane `l` has its elements `l`, `l + 32`, …, so the Hadamard rotation's
// rounds are shuffles, then sums inside a lane. Encoders want neighbours in one lane and stores want 16 bytes, so the head
// goes through shared memory on both sides of the encoder. A head that cannot be encoded is written as `quantize.cu` says.
#include "encode.cuh"
#include "kv.cuh"

constexpr u32 WARPS = THREADS / WARP;

// What a launch appends.
struct KvAppend {
    const KvSequence *sequences;
    const KvSegment *segments;
    const float *k;
    const float *v;
    const float *angles;
    KvFold keys;
    KvFold values;
    u32 *flag;
    KvRows rows;
    u32 n_sequences;
    u32 padding;
};

// A warp's own shared memory: a head as floats, and what it is encoded to.
struct Room {
    alignas(16) float x[HEAD_MOST];
    alignas(16) u8 bytes[HEAD_MOST * sizeof(float)];
};

// Copies from shared memory to a head's place, 16 bytes to a lane where address and length allow it, else 4.
__device__ inline void put(u8 *to, const u8 *from, u32 bytes, u32 lane)
{
    if (misalignment(to) == 0 && bytes % sizeof(Wide) == 0) {
        for (u32 i = lane * sizeof(Wide); i < bytes; i += WARP * sizeof(Wide)) store(to + i, load<Wide>(from + i));
    } else {
        for (u32 i = lane * 4; i < bytes; i += WARP * 4) store(to + i, load<u32>(from + i));
    }
}

// Stores a head as floats. Answers the bits of the flag.
template <u32 TYPE> __device__ inline u32 put_floats(u8 *to, Room &room, u32 head_dim, u32 lane)
{
    u32 raised = 0;
    for (u32 i = lane; i < head_dim / 2; i += WARP) {
        const float low = room.x[2 * i], high = room.x[2 * i + 1];
        const bool finite = magnitude_of(low) < float_of(0x7f800000) && magnitude_of(high) < float_of(0x7f800000);
        if (!finite) raised |= NOT_FINITE;
        if constexpr (TYPE == KV_F32) {
            store(room.bytes + 8 * i, bits_of(low));
            store(room.bytes + 8 * i + 4, bits_of(high));
        } else {
            const u32 pair = TYPE == KV_F16 ? to_f16_pair(low, high) : to_bf16_pair(low, high);
            const u32 infinite = TYPE == KV_F16 ? 0x7c00 : 0x7f80;
            const bool overflows = (pair & infinite) == infinite || (pair >> 16 & infinite) == infinite;
            if (finite && overflows) raised |= OVERFLOW;
            store(room.bytes + 4 * i, pair);
        }
    }
    __syncwarp();
    put(to, room.bytes, (TYPE == KV_F32 ? 4 : 2) * head_dim, lane);
    __syncwarp();
    return raised;
}

// Stores a head as blocks. A lane has four elements of the first half of a block and four of the second, four lanes have a
// block, and the warp all blocks of a head at once. Answers the bits of the flag.
template <typename Block> __device__ inline u32 put_blocks(u8 *quants, u8 *scales, Room &room, u32 head_dim, u32 lane)
{
    constexpr u32 GROUP = 4, HALF = BLOCK_LEN / 2;
    static_assert(WARP / GROUP * BLOCK_LEN == HEAD_MOST);
    const u32 block = lane / GROUP, at = lane % GROUP * 4;
    const bool inside = block < head_dim / BLOCK_LEN;
    float v[8];
    UNROLLED for (u32 i = 0; i < 4; i++) {
        v[i] = inside ? room.x[block * BLOCK_LEN + at + i] : 0.0f;
        v[4 + i] = inside ? room.x[block * BLOCK_LEN + HALF + at + i] : 0.0f;
    }
    const Scale scale = scale_of<Block, 4, GROUP>(v);
    const u32 low = quants_of<Block>(v, scale), high = quants_of<Block>(v + 4, scale);
    u8 *bytes = room.bytes + block * Format<Block>::QUANTS + at;
    if constexpr (Format<Block>::NIBBLES) {
        store(bytes, low | high << 4);
    } else {
        store(bytes, low);
        store(bytes + HALF, high);
    }
    if (inside && at == 0) store(scales + block * sizeof(f16), scale.d);
    __syncwarp();
    put(quants, room.bytes, head_dim / BLOCK_LEN * Format<Block>::QUANTS, lane);
    __syncwarp();
    return inside && at == 0 ? scale.raised : 0;
}

// Stores the head in `room.x` as elements of `type`.
__device__ inline u32 put_head(u32 type, u8 *quants, u8 *scales, Room &room, u32 head_dim, u32 lane)
{
    switch (type) {
    case KV_F32: return put_floats<KV_F32>(quants, room, head_dim, lane);
    case KV_F16: return put_floats<KV_F16>(quants, room, head_dim, lane);
    case KV_BF16: return put_floats<KV_BF16>(quants, room, head_dim, lane);
    case KV_Q8_0: return put_blocks<BlockQ8_0>(quants, scales, room, head_dim, lane);
    default: return put_blocks<BlockQ4_0>(quants, scales, room, head_dim, lane);
    }
}

// One head of K or V of one token.
__device__ inline u32 append(const KvAppend &to, const KvSequence &sequence, u32 token, u32 head, bool key, Room &room)
{
    const KvRows &rows = to.rows;
    const u32 lane = threadIdx.x % WARP, head_dim = rows.head_dim;
    const u64 number = u64{sequence.first_query} + token;
    const float *from = (key ? to.k : to.v) + (number * rows.n_kv_heads + head) * head_dim;
    float x[HELD];
    UNROLLED for (u32 i = 0; i < HELD; i++) {
        const u32 d = lane + WARP * i;
        x[i] = d < head_dim ? from[d] : 0.0f;
    }
    if (key) {
        UNROLLED for (u32 i = 0; i < HELD; i++) {
            if (WARP * i >= rows.rope_dims) continue;
            const u32 d = lane + WARP * i;
            const float other = __shfl_xor_sync(ALL_LANES, x[i], 1);
            if (d < rows.rope_dims) {
                const float *turn = to.angles + number * rows.rope_dims + d / 2 * 2;
                const float cosine = turn[0], sine = turn[1];
                x[i] = d % 2 == 0 ? x[i] * cosine - other * sine : other * sine + x[i] * cosine;
            }
        }
    }
    const KvFold &fold = key ? to.keys : to.values;
    if (fold.constants != nullptr) {
        UNROLLED for (u32 i = 0; i < HELD; i++) {
            const u32 d = lane + WARP * i, at = head * head_dim + d;
            if (d < head_dim) x[i] = (x[i] - fold.constants[at]) * fold.scales[at];
        }
        hadamard(x, head_dim);
    }
    UNROLLED for (u32 i = 0; i < HELD; i++) {
        const u32 d = lane + WARP * i;
        if (d < head_dim) room.x[d] = x[i];
    }
    __syncwarp();

    // The step's rows are the last of the sequence's last segment.
    const KvSegment last = to.segments[sequence.first_segment + sequence.segments - 1];
    const u32 row = last.row + last.len - sequence.queries + token;
    u32 raised = 0;
    if (row < rows.sink_rows) {
        u8 *sinks = sequence.base + (key ? rows.sink_k : rows.sink_v);
        sinks += (u64{row} * rows.n_kv_heads + head) * head_dim * sizeof(f16);
        raised |= put_floats<KV_F16>(sinks, room, head_dim, lane);
    }
    const u32 type = key ? rows.k_type : rows.v_type;
    u8 *start = sequence.base + rows.rows_at + row * rows.stride;
    u8 *quants = start + (key ? rows.k_quants : rows.v_quants) + plane_bytes(type, head * head_dim);
    u8 *scales = start + (key ? rows.k_scales : rows.v_scales) + head * head_dim / BLOCK_LEN * sizeof(f16);
    return raised | put_head(type, quants, scales, room, head_dim, lane);
}

extern "C" __global__ void __launch_bounds__(THREADS, 4) kv_append(KvAppend to)
{
    __shared__ Room rooms[WARPS];
    const u32 warp = threadIdx.x / WARP, heads = to.rows.n_kv_heads;
    u32 raised = 0;
    for (u32 s = blockIdx.y; s < to.n_sequences; s += gridDim.y) {
        const KvSequence &sequence = to.sequences[s];
        const u32 items = sequence.queries * 2 * heads;
        for (u32 item = blockIdx.x * WARPS + warp; item < items; item += gridDim.x * WARPS) {
            const u32 head = item % heads, rest = item / heads;
            raised |= append(to, sequence, rest / 2, head, rest % 2 == 0, rooms[warp]);
        }
    }
    if (raised != 0) atomicOr(to.flag, raised);
}
