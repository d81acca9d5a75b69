// Weights as they lie on a device, and how they are read: a run (32 elements of a row that follow one another) at a time.
//
// A quantized matrix of `rows` x `cols` has runs r = row * (cols / 32) + i, and a block for each RUNS of them. Its bytes lie
// in planes, each from a multiple of 256 bytes on (`granule_quant::WeightPlanes` says where):
//
//   low      4 * LOW bytes a run: word p has, from the lowest bit on, LOW bits of each of the code words p, p + LOW,
//            p + 2 LOW, ... Code word n is elements 4n to 4n + 3, one a byte: of nibbles word p has elements 4p to 4p + 3 in
//            the low halves of its bytes and 16 + 4p to 19 + 4p in the high ones
//   high     4 * HIGH bytes a run: the same of the HIGH bits above them
//   scales   SCALE_BYTES a run: its scales (i8), one or one a half; then as many minimums (u8). NARROW: of each half scale
//            (low four bits) and minimum (high four)
//   d        2 bytes a block, the f16 d, or 4 where there are minimums: behind it the f16 that is, or multiplies, them
//
// What the numbers mean is said once for all processors, in granule-quant's `expand`; the types below are its constants. An
// element is scale * (code - OFFSET) + minimum, or scale * (signed code) + minimum where codes are looked up: exact but for
// one rounding where there is a minimum.
//
// F32, F16 and BF16 matrices are their rows, each padded with zeros to a multiple of 16 bytes.
#pragma once

#include "blocks.cuh"

// Which scales the elements of a block have beside the block's own: none, one a run, one a half run.
constexpr u32 ONE = 0, WHOLE = 1, HALVES = 2;

// What a type is; those below say otherwise where they do.
template <u32 LOW_BITS, u32 HIGH_BITS, u32 BLOCK_RUNS, u32 SCALE_KIND, bool HAS_MINIMUM> struct Weight {
    static constexpr u32 LOW = LOW_BITS, HIGH = HIGH_BITS; // bits of a code, and words of a run, in the two planes
    static constexpr u32 RUNS = BLOCK_RUNS;                // runs of a block
    static constexpr u32 SCALES = SCALE_KIND;
    static constexpr bool MINIMUM = HAS_MINIMUM;
    static constexpr bool NARROW = false; // scales and minimums have four bits each
    static constexpr u32 OFFSET = 0;      // to be taken off a code
    static constexpr u32 ENTRIES = 0;     // of the table that codes are looked up in; 0: there is none
    static constexpr float UNIT = 1.0f;   // what scales are multiplied by, a power of two
    static constexpr u32 SCALE_BYTES = SCALE_KIND * (HAS_MINIMUM ? 2 : 1);
    static constexpr u32 D_BYTES = HAS_MINIMUM ? 4 : 2;
};

struct Q8_0 : Weight<8, 0, 1, ONE, false> {
    static constexpr u32 OFFSET = 128;
};
struct Q4_0 : Weight<4, 0, 1, ONE, false> {
    static constexpr u32 OFFSET = 8;
};
struct Q4_1 : Weight<4, 0, 1, ONE, true> {};
struct Q5_0 : Weight<4, 1, 1, ONE, false> {
    static constexpr u32 OFFSET = 16;
};
struct Q5_1 : Weight<4, 1, 1, ONE, true> {};
struct Q2_K : Weight<2, 0, 8, HALVES, true> {
    static constexpr bool NARROW = true;
    static constexpr u32 SCALE_BYTES = 2;
};
struct Q3_K : Weight<2, 1, 8, HALVES, false> {
    static constexpr u32 OFFSET = 4;
};
struct Q4_K : Weight<4, 0, 8, WHOLE, true> {};
struct Q5_K : Weight<4, 1, 8, WHOLE, true> {};
struct Q6_K : Weight<4, 2, 8, HALVES, false> {
    static constexpr u32 OFFSET = 32;
};
struct IQ4_NL : Weight<4, 0, 1, ONE, false> {
    static constexpr u32 ENTRIES = 16;
    // -127 -104 -83 -65, -49 -35 -22 -10, 1 13 25 38, 53 69 89 113: four entries a word, the first lowest.
    __device__ static constexpr u32 entries(u32 i)
    {
        return i == 0 ? 0xbfad9881 : i == 1 ? 0xf6eaddcf : i == 2 ? 0x26190d01 : 0x71594535;
    }
};
struct IQ4_XS : Weight<4, 0, 8, WHOLE, false> {
    static constexpr u32 ENTRIES = IQ4_NL::ENTRIES;
    __device__ static constexpr u32 entries(u32 i) { return IQ4_NL::entries(i); }
};
struct IQ2_XXS : Weight<2, 1, 8, WHOLE, false> {
    static constexpr float UNIT = 0.125f;
    static constexpr u32 ENTRIES = 8;
    // 8 25 43 0, -8 -25 -43 0.
    __device__ static constexpr u32 entries(u32 i) { return i == 0 ? 0x002b1908 : 0x00d5e7f8; }
};

// Where the planes of a quantized matrix begin. Those that a type does not have are not looked at.
struct Planes {
    const u8 *low, *high, *scales, *d;
};

// A run as it lies in the planes: what a thread has to hold while memory is still under way.
template <typename T> struct RunBits {
    u32 low[T::LOW];
    u32 high[T::HIGH == 0 ? 1 : T::HIGH];
    u32 scales;
    u32 d;
};

// `N` words that begin at a multiple of their size, or of 16 bytes. ONCE: the multiprocessor need not keep what it reads,
// because neighbouring lanes take all of it now.
template <bool ONCE, u32 N> __device__ inline void load_words(const u8 *from, u32 (&to)[N])
{
    if constexpr (N % 4 == 0) {
        UNROLLED for (u32 i = 0; i < N / 4; i++) {
            const Wide wide = ONCE ? load_once<Wide>(from + i * sizeof(Wide)) : load<Wide>(from + i * sizeof(Wide));
            UNROLLED for (u32 k = 0; k < 4; k++) to[4 * i + k] = wide.word[k];
        }
    } else if constexpr (N == 2) {
        const HalfWide half = ONCE ? load_once<HalfWide>(from) : load<HalfWide>(from);
        to[0] = half.word[0];
        to[1] = half.word[1];
    } else {
        static_assert(N == 1);
        to[0] = load<u32>(from);
    }
}

// Reads what a run has beside codes.
template <typename T, typename Index> __device__ inline void load_scales(const Planes &planes, Index run, RunBits<T> &bits)
{
    if constexpr (T::SCALE_BYTES == 1) bits.scales = load<u8>(planes.scales + run);
    if constexpr (T::SCALE_BYTES == 2) bits.scales = load<u16>(planes.scales + run * 2);
    static_assert(T::SCALE_BYTES <= 2);
    const u8 *d = planes.d + run / T::RUNS * T::D_BYTES;
    if constexpr (T::MINIMUM) {
        bits.d = load<u32>(d);
    } else {
        bits.d = load<u16>(d);
    }
}

// Reads run `run`: 16 bytes at once where its planes have so many. ONCE as above, for warps whose lanes read neighbouring runs.
template <typename T, bool ONCE = false, typename Index = u64>
__device__ inline RunBits<T> load_bits(const Planes &planes, Index run)
{
    RunBits<T> bits;
    // The two halves of a run of 8 bits share a sector, which has to be there for the second one.
    load_words<ONCE && (T::LOW < 8)>(planes.low + u64{run} * (4 * T::LOW), bits.low);
    if constexpr (T::HIGH > 0) load_words<ONCE>(planes.high + u64{run} * (4 * T::HIGH), bits.high);
    load_scales<T>(planes, run, bits);
    return bits;
}

// Asks for run `run` to come to the second-level cache.
template <typename T, typename Index> __device__ inline void prefetch_bits(const Planes &planes, Index run)
{
    prefetch_sector(planes.low + u64{run} * (4 * T::LOW));
    if constexpr (T::HIGH > 0) prefetch_sector(planes.high + u64{run} * (4 * T::HIGH));
    if constexpr (T::SCALE_BYTES > 0) prefetch_sector(planes.scales + run * T::SCALE_BYTES);
    prefetch_sector(planes.d + run / T::RUNS * T::D_BYTES);
}

// Codes of up to four bits: those of code word p in the low halves of the bytes, those of p + 4 in the high ones; p is below 4.
template <typename T> __device__ inline u32 nibbles(const RunBits<T> &bits, u32 p)
{
    if constexpr (T::LOW == 4) {
        return bits.low[p];
    } else {
        const u32 low = bits.low[p % 2] >> (2 * (p / 2)) & 0x33333333;
        if constexpr (T::HIGH == 0) return low;
        const u32 high = p < 2 ? bits.high[0] << (2 - p) : bits.high[0] >> (p - 2); // bit p comes to be bit 2
        return low | (high & 0x44444444);
    }
}

// The entries that four digits of up to three bits name; and of up to four bits, whose bit 3 stands in bit 2 of the digits of
// `above`, beside the number of the digit.
//
// `zero` is 0. A compiler that cannot know it keeps the table in registers; constants it fetches again for every other use, which
// is an eighth of all instructions.
template <typename T> __device__ inline u32 entries_of(u32 digits, u32 above, u32 zero)
{
    const u32 entries = picked(T::entries(0) ^ zero, T::entries(1) ^ zero, digits);
    if constexpr (T::ENTRIES <= 8) return entries;
    return picked(entries, picked(T::entries(2) ^ zero, T::entries(3) ^ zero, digits), above);
}

// The entries that nibbles name: those in the low halves of the bytes, and those in the high ones. `zero` as above.
template <typename T> __device__ inline void looked_up(u32 nibbles, u32 zero, u32 &low, u32 &high)
{
    const u32 digits = nibbles & 0x77777777, above = (nibbles >> 1 & 0x44444444) | 0x32103210;
    // Elements 0 and 1 of both words in turn, then 2 and 3.
    const u32 first = entries_of<T>(digits, above, zero), second = entries_of<T>(digits >> 16, above >> 16, zero);
    low = permuted<0x6420>(first, second);
    high = permuted<0x7531>(first, second);
}

// The run's code words. Where codes are looked up they are signed bytes, otherwise unsigned ones with OFFSET to be taken off.
template <typename T> __device__ inline void codes_of(const RunBits<T> &bits, u32 (&code)[8], u32 zero = 0)
{
    if constexpr (T::ENTRIES != 0) {
        UNROLLED for (u32 p = 0; p < 4; p++) looked_up<T>(nibbles<T>(bits, p), zero, code[p], code[p + 4]);
    } else if constexpr (T::LOW == 8) {
        UNROLLED for (u32 n = 0; n < 8; n++) code[n] = bits.low[n];
    } else {
        constexpr u32 LOW_MASK = ((1u << T::LOW) - 1) * 0x01010101, HIGH_MASK = ((1u << T::HIGH) - 1) * 0x01010101;
        UNROLLED for (u32 n = 0; n < 8; n++) {
            code[n] = bits.low[n % T::LOW] >> (n / T::LOW * T::LOW) & LOW_MASK;
            if constexpr (T::HIGH > 0) {
                // From where the bits are to above the low ones: one shift, whichever way it goes.
                const u32 at = n / T::HIGH * T::HIGH, high = bits.high[n % T::HIGH];
                code[n] |= (at < T::LOW ? high << (T::LOW - at) : high >> (at - T::LOW)) & HIGH_MASK << T::LOW;
            }
        }
    }
}

// What lane q of four has of a run: the words in which its code words q and q + 4 are.
template <typename T> struct LaneBits {
    u32 low[T::LOW == 8 ? 2 : 1];
    u32 high;
};

// Reads them of N runs from `run` on. Four lanes read a run together, and a warp the same run of eight rows.
template <typename T, u32 N> __device__ inline void load_lane_bits(const Planes &planes, u32 run, u32 q, LaneBits<T> (&bits)[N])
{
    const u8 *low = planes.low + u64{run} * (4 * T::LOW) + 4 * (q % T::LOW);
    const u8 *high = planes.high + u64{run} * (4 * T::HIGH) + (T::HIGH > 1 ? 4 * (q % T::HIGH) : 0);
    UNROLLED for (u32 j = 0; j < N; j++) {
        bits[j].low[0] = load<u32>(low + j * (4 * T::LOW));
        if constexpr (T::LOW == 8) bits[j].low[1] = load<u32>(low + j * (4 * T::LOW) + 16);
        if constexpr (T::HIGH > 0) bits[j].high = load<u32>(high + j * (4 * T::HIGH));
    }
}

// Code words q and q + 4, as of `codes_of`.
template <typename T> __device__ inline void lane_codes(const LaneBits<T> &bits, u32 q, u32 (&code)[2])
{
    if constexpr (T::LOW == 8) {
        code[0] = bits.low[0];
        code[1] = bits.low[1];
    } else {
        // Code word q comes to be in the lowest bits, and q + 4 four bits above it, whatever a word holds of either plane.
        const u32 low = T::LOW == 4 ? bits.low[0] : bits.low[0] >> (q / 2 * 2);
        u32 high = 0;
        if constexpr (T::HIGH > 0) high = bits.high >> (T::HIGH == 1 ? q : q / 2 * 2);
        constexpr u32 LOW_MASK = ((1u << T::LOW) - 1) * 0x01010101, HIGH_MASK = ((1u << T::HIGH) - 1) * 0x01010101;
        if constexpr (T::ENTRIES != 0) {
            const u32 nibbles = (low & (LOW_MASK | LOW_MASK << 4)) | (high & (HIGH_MASK | HIGH_MASK << 4)) << T::LOW;
            looked_up<T>(nibbles, 0, code[0], code[1]);
        } else {
            code[0] = (low & LOW_MASK) | (high & HIGH_MASK) << T::LOW;
            code[1] = (low >> 4 & LOW_MASK) | (high >> 4 & HIGH_MASK) << T::LOW;
        }
    }
}

// The scale of a half of the run; both have the same one unless SCALES is HALVES.
template <typename T> __device__ inline float scale_of(const RunBits<T> &bits, u32 half)
{
    const float d = to_f32(f16{static_cast<u16>(bits.d)}) * T::UNIT;
    if constexpr (T::SCALES == ONE) return d;
    const u32 byte = bits.scales >> (T::SCALES == HALVES ? 8 * half : 0);
    return d * static_cast<float>(T::NARROW ? static_cast<i32>(byte & 15) : i32{static_cast<i8>(byte)});
}

// What is added to the elements of a half of the run.
template <typename T> __device__ inline float minimum_of(const RunBits<T> &bits, u32 half)
{
    if constexpr (!T::MINIMUM) return -0.0f;
    const float minimum = to_f32(f16{static_cast<u16>(bits.d >> 16)});
    if constexpr (T::SCALES == ONE) return minimum;
    const u32 times = T::NARROW ? bits.scales >> (8 * half + 4) & 15 : bits.scales >> 8 & 0xff;
    return -(minimum * static_cast<float>(times));
}

// A run, taken apart.
template <typename T> struct Run {
    u32 code[8];      // as of `codes_of`
    float scale[2];   // of each half
    float minimum[2]; // of each half; -0 where there is none, which changes nothing that it is added to
};

template <typename T> __device__ inline Run<T> expanded(const RunBits<T> &bits)
{
    Run<T> run;
    codes_of<T>(bits, run.code);
    UNROLLED for (u32 half = 0; half < 2; half++) {
        run.scale[half] = scale_of<T>(bits, half);
        run.minimum[half] = minimum_of<T>(bits, half);
    }
    return run;
}

// Four elements from their codes, one to a byte, as `codes_of` has them.
template <typename T> __device__ inline void values_from(u32 code, float scale, float minimum, float (&x)[4])
{
    constexpr bool SIGNED = T::ENTRIES != 0;
    const u32 unsigned_code = SIGNED ? code ^ 0x80808080 : code; // signed + 128
    constexpr float ABOVE = 8388608.0f + static_cast<float>(SIGNED ? 128 : T::OFFSET);
    UNROLLED for (u32 k = 0; k < 4; k++) {
        x[k] = scale * (byte_above_2_23(unsigned_code, k) - ABOVE);
        if constexpr (T::MINIMUM) x[k] = x[k] + minimum;
    }
}

// Elements 4n to 4n + 3 of a run: the numbers of `granule_quant::decode`, bit for bit (of NaNs that they are one).
template <typename T> __device__ inline void values_of(const Run<T> &run, u32 n, float (&x)[4])
{
    values_from<T>(run.code[n], run.scale[n / 4], run.minimum[n / 4], x);
}

// The same of run `run` of a matrix, for a thread that wants no more of it than this.
template <typename T> __device__ inline void load_values(const Planes &planes, u64 run, u32 n, float (&x)[4])
{
    constexpr u32 LOW_MASK = ((1u << T::LOW) - 1) * 0x01010101, HIGH_MASK = ((1u << T::HIGH) - 1) * 0x01010101;
    u32 code = load<u32>(planes.low + run * (4 * T::LOW) + n % T::LOW * 4) >> (n / T::LOW * T::LOW) & LOW_MASK;
    if constexpr (T::HIGH > 0) {
        const u32 high = load<u32>(planes.high + run * (4 * T::HIGH) + n % T::HIGH * 4);
        code |= (high >> (n / T::HIGH * T::HIGH) & HIGH_MASK) << T::LOW;
    }
    if constexpr (T::ENTRIES != 0) {
        u32 none;
        looked_up<T>(code, 0, code, none);
    }
    RunBits<T> bits;
    load_scales<T>(planes, run, bits);
    values_from<T>(code, scale_of<T>(bits, n / 4), minimum_of<T>(bits, n / 4), x);
}

// The run as f16, two elements a word, for tensor cores: in fewer instructions than by f32. Off by at most 2^-11 of the element
// (2^-25 where it is below 2^-14), and where a run has a scale and a minimum of its own by 2^-17 of that scale more. Beyond 65504
// comes infinity.
template <typename T> __device__ inline void halves_of(const RunBits<T> &bits, u32 (&pairs)[16])
{
    u32 code[8];
    codes_of<T>(bits, code);
    if constexpr (T::SCALES == ONE) {
        // The scale is an f16, and so is the code less its offset: first 1024 + code, whose lowest bits are the code's.
        constexpr u32 OFFSET = T::ENTRIES != 0 ? 128 : T::OFFSET;
        const u32 d = permuted<0x1010>(bits.d, 0), minimum = T::MINIMUM ? permuted<0x3232>(bits.d, 0) : 0x80008000;
        UNROLLED for (u32 i = 0; i < 16; i++) {
            const u32 word = T::ENTRIES != 0 ? code[i / 2] ^ 0x80808080 : code[i / 2];
            const u32 above = i % 2 == 0 ? permuted<0x4140>(word, 0x64) : permuted<0x4342>(word, 0x64);
            pairs[i] = fused_f16(fused_f16(above, 0x3c003c00, (0xe400 + OFFSET) * 0x10001), d, minimum);
        }
    } else if constexpr (T::ENTRIES == 0) {
        // 128 + code is the code in the highest bits of an f32's significand; 128 + OFFSET times the scale is exact.
        constexpr float ABOVE = 128.0f + static_cast<float>(T::OFFSET);
        static_assert(T::LOW + T::HIGH < 8, "codes of up to seven bits");
        UNROLLED for (u32 half = 0; half < 2; half++) {
            const float scale = scale_of<T>(bits, half), more = fused(scale, -ABOVE, minimum_of<T>(bits, half));
            UNROLLED for (u32 i = 8 * half; i < 8 * half + 8; i++) {
                const u32 word = code[i / 2];
                const u32 low = i % 2 == 0 ? permuted<0x4055>(word, 0x43) : permuted<0x4255>(word, 0x43);
                const u32 high = i % 2 == 0 ? permuted<0x4155>(word, 0x43) : permuted<0x4355>(word, 0x43);
                pairs[i] = to_f16_pair(fused(scale, float_of(low), more), fused(scale, float_of(high), more));
            }
        }
    } else {
        const Run<T> run = expanded<T>(bits);
        UNROLLED for (u32 n = 0; n < 8; n++) {
            float x[4];
            values_of<T>(run, n, x);
            pairs[2 * n] = to_f16_pair(x[0], x[1]);
            pairs[2 * n + 1] = to_f16_pair(x[2], x[3]);
        }
    }
}

// Bytes from one row of a float matrix to the next.
template <typename Float> __device__ inline u64 float_stride(u64 cols)
{
    return (cols * sizeof(Float) + (sizeof(Wide) - 1)) / sizeof(Wide) * sizeof(Wide);
}
