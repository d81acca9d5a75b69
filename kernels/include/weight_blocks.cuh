// The block structs of ggml that are for weights only, byte for byte, beside those of `blocks.cuh`, and how a run of each
// type (32 elements of a block that follow one another) is read. The definition is that of `granule-quant` (`src/block/` and
// `src/expand/`).
//
// Blocks lie at even addresses: what is wider is read two bytes at a time.
#pragma once

#include "weights.cuh"

// 32 elements in 20 bytes: x' = d * q + m.
//
//   byte  0     2     4             5                                     20
//         | d   | m   | q[0]        | q[1]        |   ...   | q[15]        |
//         | f16 | f16 | lo x0 hi x16| lo x1 hi x17|         | lo x15 hi x31|
struct BlockQ4_1 {
    f16 d;
    f16 m;
    u8 q[BLOCK_LEN / 2];
};
static_assert(sizeof(BlockQ4_1) == 20 && alignof(BlockQ4_1) == 2);

// 32 elements in 22 bytes: x' = d * (q - 16), where q is a nibble plus 16 where bit j of `h`, little-endian, is set.
//
//   byte  0     2                   6             7                       22
//         | d   | h: bit j for xj   | q[0]        | q[1]        |  ...    |
//         | f16 | u32               | lo x0 hi x16| lo x1 hi x17|         |
struct BlockQ5_0 {
    f16 d;
    u8 h[4];
    u8 q[BLOCK_LEN / 2];
};
static_assert(sizeof(BlockQ5_0) == 22 && alignof(BlockQ5_0) == 2);

// 32 elements in 24 bytes: x' = d * q + m, with q as in Q5_0.
//
//   byte  0     2     4                   8             9                 24
//         | d   | m   | h: bit j for xj   | q[0]        | q[1]  |  ...    |
//         | f16 | f16 | u32               | lo x0 hi x16|       |         |
struct BlockQ5_1 {
    f16 d;
    f16 m;
    u8 h[4];
    u8 q[BLOCK_LEN / 2];
};
static_assert(sizeof(BlockQ5_1) == 24 && alignof(BlockQ5_1) == 2);

// 32 elements in 18 bytes: x' = d * v[q], with v the entries of the tag IQ4_NL.
//
//   byte  0     2             3                                           18
//         | d   | q[0]        | q[1]        |   ...         | q[15]        |
//         | f16 | lo x0 hi x16| lo x1 hi x17|               | lo x15 hi x31|
struct BlockIQ4_NL {
    f16 d;
    u8 q[BLOCK_LEN / 2];
};
static_assert(sizeof(BlockIQ4_NL) == 18 && alignof(BlockIQ4_NL) == 2);

// 256 elements in 84 bytes: x' = (d * s) * q - (dmin * t), with s and t for each 16 elements.
//
//   byte  0                      16                                80    82     84
//         | scales[16]           | q[64]                           | d   | dmin |
//         | lo s, hi t           | four quants of 2 bits each      | f16 | f16  |
//
//   q[32 n + j], j < 32:   bits 0-1       2-3            4-5            6-7
//              element     128 n + j      128 n + 32 + j 128 n + 64 + j 128 n + 96 + j
struct BlockQ2_K {
    u8 scales[16];
    u8 q[64];
    f16 d;
    f16 dmin;
};
static_assert(sizeof(BlockQ2_K) == 84 && alignof(BlockQ2_K) == 2);

// 256 elements in 110 bytes: x' = (d * (s - 32)) * (q - 4), with s for each 16 elements.
//
//   byte  0              32                              96                    108   110
//         | h[32]        | q[64]                         | scales[12]          | d   |
//         | third bits   | low two bits, as in Q2_K      | 16 scales of 6 bits | f16 |
//
//   h[j], j < 32: bit i is the third bit of element 32 i + j
//   scales[g], g < 8:      low nibble: low four bits of s[g]   high nibble: those of s[g + 8]
//   scales[8 + g], g < 4:  bits 0-1: high two bits of s[g], 2-3: of s[g + 4], 4-5: of s[g + 8], 6-7: of s[g + 12]
struct BlockQ3_K {
    u8 h[32];
    u8 q[64];
    u8 scales[12];
    f16 d;
};
static_assert(sizeof(BlockQ3_K) == 110 && alignof(BlockQ3_K) == 2);

// 256 elements in 144 bytes: x' = (d * s) * q - (dmin * t), with s and t for each 32 elements.
//
//   byte  0     2      4                                 16                        144
//         | d   | dmin | scales[12]                      | q[128]                  |
//         | f16 | f16  | 8 scales, 8 minimums of 6 bits  | two quants of 4 bits    |
//
//   scales[i], i < 4:      bits 0-5: s[i]   bits 6-7: high two bits of s[i + 4]
//   scales[4 + i], i < 4:  bits 0-5: t[i]   bits 6-7: high two bits of t[i + 4]
//   scales[8 + i], i < 4:  low nibble: low four bits of s[i + 4]   high nibble: those of t[i + 4]
//   q[32 n + j], j < 32:   low nibble is element 64 n + j, high nibble 64 n + 32 + j
struct BlockQ4_K {
    f16 d;
    f16 dmin;
    u8 scales[12];
    u8 q[128];
};
static_assert(sizeof(BlockQ4_K) == 144 && alignof(BlockQ4_K) == 2);

// 256 elements in 176 bytes: x' = (d * s) * q - (dmin * t), with s and t for each 32 elements.
//
//   byte  0     2      4            16                48                           176
//         | d   | dmin | scales[12] | h[32]           | q[128]                     |
//         | f16 | f16  | as in Q4_K | fifth bits      | low four bits, as in Q4_K  |
//
//   h[j], j < 32: bit i is the fifth bit of element 32 i + j
struct BlockQ5_K {
    f16 d;
    f16 dmin;
    u8 scales[12];
    u8 h[32];
    u8 q[128];
};
static_assert(sizeof(BlockQ5_K) == 176 && alignof(BlockQ5_K) == 2);

// 256 elements in 210 bytes: x' = (d * s) * (q - 32), with s for each 16 elements.
//
//   byte  0                  128               192              208   210
//         | q[128]           | h[64]           | scales[16]     | d   |
//         | low four bits    | high two bits   | i8             | f16 |
//
//   q[64 n + j], j < 64:  low nibble is element 128 n + j, high nibble 128 n + 64 + j
//   h[32 n + j], j < 32:  as q of Q2_K
struct BlockQ6_K {
    u8 q[128];
    u8 h[64];
    i8 scales[16];
    f16 d;
};
static_assert(sizeof(BlockQ6_K) == 210 && alignof(BlockQ6_K) == 2);

// 256 elements in 136 bytes: x' = (d * (s - 32)) * v[q], with s for each 32 elements and v as in IQ4_NL.
//
//   byte  0     2          4             8                          136
//         | d   | h        | l[4]        | q[128]                   |
//         | f16 | u16      | low bits    | two quants of 4 bits     |
//
//   h:     bits 2i and 2i + 1 are the high two bits of s[i], i < 8
//   l[n]:  low nibble: low four bits of s[2 n], high nibble: those of s[2 n + 1]
//   q[16 i + j], j < 16: low nibble is element 32 i + j, high nibble 32 i + 16 + j
struct BlockIQ4_XS {
    f16 d;
    u8 h[2];
    u8 l[4];
    u8 q[128];
};
static_assert(sizeof(BlockIQ4_XS) == 136 && alignof(BlockIQ4_XS) == 2);

// 256 elements in 66 bytes: x' = (d * (s + 1/2) / 4) * g, with s for each 32 elements and g from a grid, with a sign.
//
//   byte  0     2                                                      66
//         | d   | q[8]: eight runs of 32 elements, 8 bytes each        |
//         | f16 | [u8; 8]                                              |
//
//   q[i]:  byte  0    1    2    3    4                               8
//                | c0 | c1 | c2 | c3 | u32, little-endian            |
//                | points of the grid| bits 0-6 signs of c0, 7-13 of c1, 14-20 of c2, 21-27 of c3, 28-31 s
//
// Of the signs of a point bit j makes element j negative; the eighth is as makes the number of negative elements even.
struct BlockIQ2_XXS {
    f16 d;
    u8 q[8][8];
};
static_assert(sizeof(BlockIQ2_XXS) == 66 && alignof(BlockIQ2_XXS) == 2);

// The points of the grid of IQ2_XXS: two bits for each of eight elements, those of the first lowest; 0 stands for 8, 1 for
// 25 and 2 for 43. Source: `iq2xxs_grid` of ggml's `ggml-common.h`, a table of constants; the same as in granule-quant's
// `src/expand/grid.rs`.
__device__ constexpr u16 IQ2_XXS_POINTS[256] = {
    0x0000, 0x0002, 0x0005, 0x0008, 0x000a, 0x0011, 0x0014, 0x0020, 0x0022, 0x0028, 0x002a, 0x0041, 0x0044, 0x0050,
    0x0058, 0x0061, 0x0064, 0x0080, 0x0082, 0x008a, 0x00a2, 0x0101, 0x0104, 0x0110, 0x0115, 0x0140, 0x0184, 0x0198,
    0x0200, 0x0202, 0x0222, 0x0282, 0x0401, 0x0404, 0x0410, 0x0421, 0x0424, 0x0440, 0x0442, 0x0448, 0x0460, 0x0481,
    0x0484, 0x0490, 0x04a4, 0x0500, 0x0502, 0x0508, 0x0520, 0x0546, 0x0569, 0x0580, 0x0591, 0x0609, 0x0610, 0x0640,
    0x0684, 0x06a4, 0x0800, 0x0805, 0x0808, 0x0814, 0x0828, 0x0841, 0x0844, 0x0850, 0x0852, 0x0888, 0x0904, 0x0940,
    0x0a02, 0x0a14, 0x1001, 0x1004, 0x1010, 0x1021, 0x1040, 0x1060, 0x1084, 0x1090, 0x1095, 0x1100, 0x1108, 0x1120,
    0x1150, 0x115a, 0x1180, 0x1224, 0x1245, 0x1400, 0x1408, 0x1420, 0x1425, 0x1449, 0x1480, 0x1518, 0x1562, 0x1600,
    0x1616, 0x1801, 0x1804, 0x1810, 0x1840, 0x1881, 0x1900, 0x1905, 0x19a0, 0x1a51, 0x2000, 0x2002, 0x200a, 0x2044,
    0x2061, 0x2080, 0x2082, 0x2129, 0x2148, 0x2200, 0x2202, 0x2401, 0x2404, 0x2410, 0x2440, 0x2456, 0x2500, 0x2541,
    0x2564, 0x2690, 0x2808, 0x2820, 0x2894, 0x2a44, 0x4001, 0x4004, 0x4010, 0x4018, 0x4021, 0x4024, 0x4040, 0x4048,
    0x4056, 0x4060, 0x4081, 0x4084, 0x4090, 0x4100, 0x4120, 0x4161, 0x4180, 0x4185, 0x4201, 0x4210, 0x4248, 0x4256,
    0x4268, 0x4400, 0x4408, 0x4420, 0x4480, 0x4499, 0x4512, 0x4524, 0x4600, 0x4801, 0x4804, 0x4810, 0x4840, 0x4845,
    0x4900, 0x4958, 0x4961, 0x4982, 0x4a45, 0x4a90, 0x5000, 0x5008, 0x5011, 0x5019, 0x5020, 0x5080, 0x5088, 0x5104,
    0x5142, 0x51a4, 0x5291, 0x5490, 0x5492, 0x550a, 0x5601, 0x5654, 0x5800, 0x5811, 0x5819, 0x5864, 0x5940, 0x5a08,
    0x6004, 0x6010, 0x6040, 0x6068, 0x6100, 0x6155, 0x6218, 0x6260, 0x6400, 0x6405, 0x6510, 0x6512, 0x6584, 0x6842,
    0x8000, 0x8002, 0x800a, 0x8041, 0x8082, 0x8104, 0x8118, 0x8140, 0x8211, 0x8401, 0x8404, 0x8410, 0x8415, 0x8440,
    0x8460, 0x8500, 0x8546, 0x8594, 0x8609, 0x8640, 0x8660, 0x8802, 0x8904, 0x8a11, 0x9004, 0x9010, 0x9024, 0x9040,
    0x90a1, 0x9116, 0x9180, 0x9245, 0x9400, 0x9422, 0x9444, 0x9551, 0x9881, 0x9920, 0xa002, 0xa050, 0xa085, 0xa109,
    0xa200, 0xa418, 0xa850, 0xa904,
};

// Four bytes from an even address.
__device__ inline u32 word_at(const u8 *from) { return load<u16>(from) | static_cast<u32>(load<u16>(from + 2)) << 16; }

// Four codes of two bits, the first lowest, one to a byte.
__device__ inline u32 spread_pairs(u32 bits)
{
    return (bits & 3) | (bits << 6 & 0x300) | (bits << 12 & 0x30000) | (bits << 18 & 0x3000000);
}

// Four bits, the first lowest, one to a byte.
__device__ inline u32 spread_bits(u32 bits) { return (bits & 15) * 0x00204081 & 0x01010101; }

// The codes of a run whose 16 bytes of nibbles lie together: the low ones are its first half.
__device__ inline void nibble_codes(const u8 *q, u32 (&code)[8])
{
    UNROLLED for (u32 n = 0; n < 4; n++) {
        const u32 word = word_at(q + 4 * n);
        code[n] = word & 0x0f0f0f0f;
        code[n + 4] = word >> 4 & 0x0f0f0f0f;
    }
}

// The same with a fifth bit of each, bit j of `h` that of element j.
__device__ inline void five_bit_codes(const u8 *q, u32 h, u32 (&code)[8])
{
    nibble_codes(q, code);
    UNROLLED for (u32 n = 0; n < 8; n++) code[n] |= spread_bits(h >> (4 * n)) << 4;
}

// Adds to the codes of a run bits `from` and on of 32 bytes, as many as MASK has, `to` bits up.
template <u32 MASK> __device__ inline void add_bits(const u8 *bytes, u32 from, u32 to, u32 (&code)[8])
{
    UNROLLED for (u32 n = 0; n < 8; n++) code[n] |= (word_at(bytes + 4 * n) >> from & MASK * 0x01010101) << to;
}

// Scale (low byte) and minimum of run `i`, six bits each, as Q4_K and Q5_K have them.
__device__ inline u32 six_bit_scales(const u8 *k, u32 i)
{
    if (i < 4) return (k[i] & 63) | (k[i + 4] & 63) << 8;
    const u32 low = k[i + 4], s = k[i - 4] >> 6, t = k[i] >> 6;
    return (low & 15) | s << 4 | (low >> 4) << 8 | t << 12;
}

// How the block of a type is read:
//   codes(block, i, code)   the codes of run `i`, four to a word; `code` is zeros before
//   scales(block, i)        what the plane of scales has of run `i`, where the type has one
//   d(block)                what the plane of d has of the block
template <typename T> struct BlockOf;

// What the blocks that are one run say alike: d, and the minimum right behind it where there is one.
template <typename B, bool MINIMUM> struct BlockOf32 {
    using Block = B;
    __device__ static u32 scales(const Block &, u32) { return 0; }
    __device__ static u32 d(const Block &block)
    {
        const u8 *at = reinterpret_cast<const u8 *>(&block);
        return MINIMUM ? word_at(at) : load<u16>(at);
    }
};

template <> struct BlockOf<Q8_0> : BlockOf32<BlockQ8_0, false> {
    __device__ static void codes(const Block &block, u32, u32 (&code)[8])
    {
        const u8 *q = reinterpret_cast<const u8 *>(block.q);
        UNROLLED for (u32 n = 0; n < 8; n++) code[n] = word_at(q + 4 * n) ^ 0x80808080;
    }
};

template <> struct BlockOf<Q4_0> : BlockOf32<BlockQ4_0, false> {
    __device__ static void codes(const Block &block, u32, u32 (&code)[8]) { nibble_codes(block.q, code); }
};

template <> struct BlockOf<Q4_1> : BlockOf32<BlockQ4_1, true> {
    __device__ static void codes(const Block &block, u32, u32 (&code)[8]) { nibble_codes(block.q, code); }
};

template <> struct BlockOf<Q5_0> : BlockOf32<BlockQ5_0, false> {
    __device__ static void codes(const Block &block, u32, u32 (&code)[8])
    {
        five_bit_codes(block.q, word_at(block.h), code);
    }
};

template <> struct BlockOf<Q5_1> : BlockOf32<BlockQ5_1, true> {
    __device__ static void codes(const Block &block, u32, u32 (&code)[8])
    {
        five_bit_codes(block.q, word_at(block.h), code);
    }
};

template <> struct BlockOf<IQ4_NL> : BlockOf32<BlockIQ4_NL, false> {
    __device__ static void codes(const Block &block, u32, u32 (&code)[8]) { nibble_codes(block.q, code); }
};

template <> struct BlockOf<Q2_K> {
    using Block = BlockQ2_K;
    __device__ static void codes(const Block &block, u32 i, u32 (&code)[8])
    {
        add_bits<3>(block.q + i / 4 * 32, i % 4 * 2, 0, code);
    }
    __device__ static u32 scales(const Block &block, u32 i) { return load<u16>(block.scales + 2 * i); }
    __device__ static u32 d(const Block &block) { return block.d.bits | static_cast<u32>(block.dmin.bits) << 16; }
};

template <> struct BlockOf<Q3_K> {
    using Block = BlockQ3_K;
    __device__ static void codes(const Block &block, u32 i, u32 (&code)[8])
    {
        add_bits<3>(block.q + i / 4 * 32, i % 4 * 2, 0, code);
        add_bits<1>(block.h, i, 2, code);
    }
    __device__ static u32 scale(const Block &block, u32 g)
    {
        const u32 low = block.scales[g % 8] >> (g / 8 * 4) & 15, high = block.scales[8 + g % 4] >> (g / 4 * 2) & 3;
        return (low + 16 * high - 32) & 0xff;
    }
    __device__ static u32 scales(const Block &block, u32 i)
    {
        return scale(block, 2 * i) | scale(block, 2 * i + 1) << 8;
    }
    __device__ static u32 d(const Block &block) { return block.d.bits; }
};

template <> struct BlockOf<Q4_K> {
    using Block = BlockQ4_K;
    __device__ static void codes(const Block &block, u32 i, u32 (&code)[8])
    {
        add_bits<15>(block.q + i / 2 * 32, i % 2 * 4, 0, code);
    }
    __device__ static u32 scales(const Block &block, u32 i) { return six_bit_scales(block.scales, i); }
    __device__ static u32 d(const Block &block) { return block.d.bits | static_cast<u32>(block.dmin.bits) << 16; }
};

template <> struct BlockOf<Q5_K> {
    using Block = BlockQ5_K;
    __device__ static void codes(const Block &block, u32 i, u32 (&code)[8])
    {
        add_bits<15>(block.q + i / 2 * 32, i % 2 * 4, 0, code);
        add_bits<1>(block.h, i, 4, code);
    }
    __device__ static u32 scales(const Block &block, u32 i) { return six_bit_scales(block.scales, i); }
    __device__ static u32 d(const Block &block) { return block.d.bits | static_cast<u32>(block.dmin.bits) << 16; }
};

template <> struct BlockOf<Q6_K> {
    using Block = BlockQ6_K;
    __device__ static void codes(const Block &block, u32 i, u32 (&code)[8])
    {
        add_bits<15>(block.q + (i / 4 * 2 + i % 2) * 32, i % 4 / 2 * 4, 0, code);
        add_bits<3>(block.h + i / 4 * 32, i % 4 * 2, 4, code);
    }
    __device__ static u32 scales(const Block &block, u32 i) { return load<u16>(block.scales + 2 * i); }
    __device__ static u32 d(const Block &block) { return block.d.bits; }
};

template <> struct BlockOf<IQ4_XS> {
    using Block = BlockIQ4_XS;
    __device__ static void codes(const Block &block, u32 i, u32 (&code)[8]) { nibble_codes(block.q + 16 * i, code); }
    __device__ static u32 scales(const Block &block, u32 i)
    {
        const u32 low = block.l[i / 2] >> (i % 2 * 4) & 15, high = load<u16>(block.h) >> (2 * i) & 3;
        return (low + 16 * high - 32) & 0xff;
    }
    __device__ static u32 d(const Block &block) { return block.d.bits; }
};

template <> struct BlockOf<IQ2_XXS> {
    using Block = BlockIQ2_XXS;
    __device__ static void codes(const Block &block, u32 i, u32 (&code)[8])
    {
        const u32 points = word_at(block.q[i]), word = word_at(block.q[i] + 4);
        UNROLLED for (u32 n = 0; n < 4; n++) {
            const u32 seven = word >> (7 * n) & 127, signs = seven | (count_ones(seven) & 1) << 7;
            const u32 magnitudes = IQ2_XXS_POINTS[points >> (8 * n) & 0xff];
            code[2 * n] = spread_pairs(magnitudes) | spread_bits(signs) << 2;
            code[2 * n + 1] = spread_pairs(magnitudes >> 8) | spread_bits(signs >> 4) << 2;
        }
    }
    __device__ static u32 scales(const Block &block, u32 i) { return 2 * (block.q[i][7] >> 4) + 1; }
    __device__ static u32 d(const Block &block) { return block.d.bits; }
};
