// Every intrinsic that the kernels use, with its twin for a C++ compiler: numbers, memory accesses, conversions.
//
// On a GPU (`GRANULE_EMULATED` undefined) this needs no header of anybody's. Under `GRANULE_EMULATED` the same kernels
// are plain C++20: `granule_emulator_device.h` stands in for the language (`__global__`, `threadIdx`, barriers,
// shuffles, atomics), and each function below has a second body. Twins return the same bits for every argument; where
// an instruction's result for NaN is not promised by its manual, the comment says so.
#pragma once

#ifdef GRANULE_EMULATED
#include "granule_emulator_device.h"
#endif

using i8 = signed char;
using u8 = unsigned char;
using u16 = unsigned short;
using i32 = int;
using u32 = unsigned int;
using u64 = unsigned long long;
static_assert(sizeof(u16) == 2 && sizeof(u32) == 4 && sizeof(u64) == 8 && sizeof(void *) == 8);

// IEEE 754 binary16, by its bits.
struct f16 {
    u16 bits;
};

// The upper half of a binary32, by its bits.
struct bf16 {
    u16 bits;
};

// 16 bytes: the widest piece of memory that one thread loads or stores at once.
struct alignas(16) Wide {
    u32 word[4];
};
static_assert(sizeof(Wide) == 16 && sizeof(f16) == 2 && sizeof(bf16) == 2);

// 8 bytes.
struct alignas(8) HalfWide {
    u32 word[2];
};

// Lanes of a warp, and the mask that names them all.
constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;

// Threads of a thread block, in x alone: exactly this many, but for `attention_64` and `_128`, which are launched with as many
// warps, up to that, as shared memory has room for.
constexpr u32 THREADS = 256;

// Before a loop with a constant count whose rounds are to be in flight together.
#ifdef GRANULE_EMULATED
#define UNROLLED
#else
#define UNROLLED _Pragma("unroll")
#endif

// Before a loop that is not to be unrolled.
#ifdef GRANULE_EMULATED
#define ROLLED
#else
#define ROLLED _Pragma("unroll 1")
#endif

// Loads a T from an address that is aligned for T, whatever type the memory was declared with.
template <typename T> __device__ inline T load(const void *from)
{
#ifdef GRANULE_EMULATED
    struct [[gnu::may_alias]] Cell {
        T value;
    };
    if (reinterpret_cast<u64>(from) % alignof(T) != 0) __trap(); // a GPU faults here too
    return static_cast<const Cell *>(from)->value;
#else
    return *static_cast<const T *>(from);
#endif
}

// The same for memory that nothing writes while the kernel runs and that the multiprocessor need not keep for anybody else.
template <typename T> __device__ inline T load_once(const void *from);

template <> __device__ inline Wide load_once<Wide>(const void *from)
{
#ifdef GRANULE_EMULATED
    return load<Wide>(from);
#else
    Wide wide;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(wide.word[0]), "=r"(wide.word[1]), "=r"(wide.word[2]), "=r"(wide.word[3])
        : "l"(__cvta_generic_to_global(from)));
    return wide;
#endif
}

template <> __device__ inline HalfWide load_once<HalfWide>(const void *from)
{
#ifdef GRANULE_EMULATED
    return load<HalfWide>(from);
#else
    HalfWide half;
    asm("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];"
        : "=r"(half.word[0]), "=r"(half.word[1])
        : "l"(__cvta_generic_to_global(from)));
    return half;
#endif
}

// Asks for what is at an address, which has to be memory, to come to the second-level cache.
__device__ inline void prefetch_sector(const void *at)
{
#ifdef GRANULE_EMULATED
    static_cast<void>(*static_cast<const volatile u8 *>(at)); // so that it is seen where accesses are checked
#else
    asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(at)));
#endif
}

// Stores a T at an address that is aligned for T, whatever type the memory was declared with.
template <typename T> __device__ inline void store(void *to, T value)
{
#ifdef GRANULE_EMULATED
    struct [[gnu::may_alias]] Cell {
        T value;
    };
    if (reinterpret_cast<u64>(to) % alignof(T) != 0) __trap(); // a GPU faults here too
    static_cast<Cell *>(to)->value = value;
#else
    *static_cast<T *>(to) = value;
#endif
}

// Bytes by which an address is past a multiple of 16.
__device__ inline u32 misalignment(const void *at)
{
    return static_cast<u32>(reinterpret_cast<u64>(at) % sizeof(Wide));
}

// The bits of an f32.
__device__ inline u32 bits_of(float x)
{
#ifdef GRANULE_EMULATED
    return __builtin_bit_cast(u32, x);
#else
    return __float_as_uint(x);
#endif
}

// The f32 that has these bits.
__device__ inline float float_of(u32 bits)
{
#ifdef GRANULE_EMULATED
    return __builtin_bit_cast(float, bits);
#else
    return __uint_as_float(bits);
#endif
}

// The bits of an f64.
__device__ inline u64 bits_of(double x)
{
#ifdef GRANULE_EMULATED
    return __builtin_bit_cast(u64, x);
#else
    return static_cast<u64>(__double_as_longlong(x));
#endif
}

// The f64 that has these bits.
__device__ inline double double_of(u64 bits)
{
#ifdef GRANULE_EMULATED
    return __builtin_bit_cast(double, bits);
#else
    return __longlong_as_double(static_cast<long long>(bits));
#endif
}

// The upper half of a product of 128 bits.
__device__ inline u64 high_product(u64 a, u64 b)
{
#ifdef GRANULE_EMULATED
    return static_cast<u64>(static_cast<unsigned __int128>(a) * b >> 64);
#else
    return __umul64hi(a, b);
#endif
}

// How many bits are set.
__device__ inline u32 count_ones(u32 x)
{
#ifdef GRANULE_EMULATED
    return static_cast<u32>(__builtin_popcount(x));
#else
    return static_cast<u32>(__popc(static_cast<int>(x)));
#endif
}

// Index of the lowest set bit; `x` is not 0.
__device__ inline u32 lowest_one(u32 x)
{
#ifdef GRANULE_EMULATED
    return static_cast<u32>(__builtin_ctz(x));
#else
    return static_cast<u32>(__ffs(static_cast<int>(x)) - 1);
#endif
}

// The float 2^23 + byte `k` of `word`: its lowest bits are the byte's.
__device__ inline float byte_above_2_23(u32 word, u32 k)
{
#ifdef GRANULE_EMULATED
    return float_of(0x4b000000 | (word >> (8 * k) & 0xff));
#else
    return __uint_as_float(__byte_perm(word, 0x4b000000, 0x7440 | k));
#endif
}

// The lowest bytes of four words, in one.
__device__ inline u32 low_bytes(u32 a, u32 b, u32 c, u32 d)
{
#ifdef GRANULE_EMULATED
    return (a & 0xff) | (b & 0xff) << 8 | (c & 0xff) << 16 | d << 24;
#else
    return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
#endif
}

// x without its sign.
__device__ inline float magnitude_of(float x)
{
#ifdef GRANULE_EMULATED
    return float_of(bits_of(x) & 0x7fffffff);
#else
    return fabsf(x); // instructions take it along for free
#endif
}

// The larger magnitude; NaN where one of the two is NaN.
__device__ inline float larger_magnitude(float x, float y)
{
    const float a = magnitude_of(x), b = magnitude_of(y);
#ifdef GRANULE_EMULATED
    if (a != a || b != b) return float_of(0x7fffffff);
    return a > b ? a : b;
#else
    float larger;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
    return larger;
#endif
}

// `magnitude`, which has no sign, with the sign of x.
__device__ inline float with_sign_of(float x, float magnitude)
{
#ifdef GRANULE_EMULATED
    return float_of((bits_of(x) & 0x80000000) | bits_of(magnitude));
#else
    u32 bits;
    asm("lop3.b32 %0, %1, 0x80000000, %2, 0xea;" : "=r"(bits) : "r"(bits_of(x)), "r"(bits_of(magnitude))); // a & b | c
    return float_of(bits);
#endif
}

// x without what is behind the point; 0 for NaN. |x| is below 2^31.
__device__ inline i32 truncate(float x)
{
#ifdef GRANULE_EMULATED
    return x != x ? 0 : static_cast<i32>(x);
#else
    i32 y;
    asm("cvt.rzi.s32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return y;
#endif
}

// The value of an f16, exactly. NaN gives the NaN 0x7fffffff.
__device__ inline float to_f32(f16 x)
{
#ifdef GRANULE_EMULATED
    const u32 sign = static_cast<u32>(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
    if (magnitude > 0x7c00) return float_of(0x7fffffff);
    if (magnitude == 0x7c00) return float_of(sign | 0x7f800000);
    if (magnitude >= 0x0400) return float_of(sign | ((magnitude << 13) + ((127 - 15) << 23)));
    return float_of(sign | bits_of(static_cast<float>(magnitude) * 0x1p-24f)); // subnormal: so many times 2^-24
#else
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
#endif
}

// The value of a bf16, exactly; a NaN keeps its bits.
__device__ inline float to_f32(bf16 x) { return float_of(static_cast<u32>(x.bits) << 16); }

// The nearest f16, the even one of two; 65520 and beyond give infinity, NaN gives the NaN 0x7fff.
__device__ inline f16 to_f16(float x)
{
#ifdef GRANULE_EMULATED
    const u32 sign = bits_of(x) >> 16 & 0x8000, magnitude = bits_of(x) & 0x7fffffff, exponent = magnitude >> 23;
    if (magnitude > 0x7f800000) return f16{0x7fff};
    if (magnitude >= 0x477ff000) return f16{static_cast<u16>(sign | 0x7c00)};
    if (exponent >= 127 - 14) {
        const u32 rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
        return f16{static_cast<u16>(sign | (rounded - ((127 - 15) << 23)) >> 13)};
    }
    if (exponent < 102) return f16{static_cast<u16>(sign)}; // less than half of 2^-24, the smallest f16
    const u32 significand = (magnitude & 0x7fffff) | 0x800000, shift = 126 - exponent;
    const u32 rounded = significand + (1u << (shift - 1)) - 1 + (significand >> shift & 1);
    return f16{static_cast<u16>(sign | rounded >> shift)};
#else
    f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
#endif
}

// The f16s nearest to two numbers, each as by `to_f16`: `low` in the lower half of the word.
__device__ inline u32 to_f16_pair(float low, float high)
{
#ifdef GRANULE_EMULATED
    return to_f16(low).bits | static_cast<u32>(to_f16(high).bits) << 16;
#else
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#endif
}

// The bf16s nearest to two numbers, the even one of two; beyond the largest comes infinity, NaN gives the NaN 0x7fff.
// `low` is in the lower half of the word.
__device__ inline u32 to_bf16_pair(float low, float high)
{
#ifdef GRANULE_EMULATED
    const auto nearest = [](u32 bits) -> u32 {
        return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    };
    return nearest(bits_of(low)) | nearest(bits_of(high)) << 16;
#else
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#endif
}

// The larger number; the other one where one of the two is NaN.
__device__ inline float larger_of(float x, float y)
{
#ifdef GRANULE_EMULATED
    return __builtin_fmaxf(x, y);
#else
    return fmaxf(x, y);
#endif
}

// The root of x, correctly rounded.
__device__ inline float square_root(float x)
{
#ifdef GRANULE_EMULATED
    return __builtin_sqrtf(x);
#else
    return __fsqrt_rn(x);
#endif
}

// 2^x to about 2 units in the last place, and 0 where that is below 2^-126: what spares the three instructions around the one
// that keep subnormal numbers. Not the same bits here and there.
__device__ inline float approximate_exp2(float x)
{
#ifdef GRANULE_EMULATED
    const float y = __builtin_exp2f(x);
    return y < 0x1p-126f ? 0.0f : y;
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// The nearest whole number, the even one of two; 0 for NaN. |x| is below 2^22.
__device__ inline i32 nearest(float x)
{
#ifdef GRANULE_EMULATED
    return x != x ? 0 : static_cast<i32>(__builtin_rintf(x));
#else
    return __float2int_rn(x);
#endif
}

// Of the eight bytes of `a` (0 to 3) and `b` (4 to 7) those that the digits of SELECT name, the last digit the lowest byte.
template <u32 SELECT> __device__ inline u32 permuted(u32 a, u32 b)
{
#ifdef GRANULE_EMULATED
    const u64 bytes = a | u64{b} << 32;
    u32 word = 0;
    for (u32 i = 0; i < 4; i++) word |= static_cast<u32>(bytes >> (8 * (SELECT >> (4 * i) & 7)) & 0xff) << (8 * i);
    return word;
#else
    return __byte_perm(a, b, SELECT);
#endif
}

// The same for digits that are known only when it runs: the lower four of `select`, each 0 to 7.
__device__ inline u32 picked(u32 a, u32 b, u32 select)
{
#ifdef GRANULE_EMULATED
    const u64 bytes = a | u64{b} << 32;
    u32 word = 0;
    for (u32 i = 0; i < 4; i++) {
        if ((select >> (4 * i) & 8) != 0) __trap(); // a GPU would repeat the byte's sign
        word |= static_cast<u32>(bytes >> (8 * (select >> (4 * i) & 7)) & 0xff) << (8 * i);
    }
    return word;
#else
    u32 word; // `__byte_perm` takes off bits that are not set here
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(word) : "r"(a), "r"(b), "r"(select));
    return word;
#endif
}

// `sum` and the products of the four bytes of `a`, signed or not, with those of `b`, which are signed.
template <bool SIGNED> __device__ inline i32 dot_bytes(u32 a, u32 b, i32 sum)
{
#ifdef GRANULE_EMULATED
    for (u32 i = 0; i < 4; i++) {
        const u8 byte = static_cast<u8>(a >> (8 * i));
        sum += (SIGNED ? i32{static_cast<i8>(byte)} : i32{byte}) * static_cast<i8>(b >> (8 * i));
    }
    return sum;
#else
    i32 all;
    if constexpr (SIGNED) {
        asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(all) : "r"(a), "r"(b), "r"(sum));
    } else {
        asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(all) : "r"(a), "r"(b), "r"(sum));
    }
    return all;
#endif
}

// a * b + c, rounded once.
__device__ inline float fused(float a, float b, float c)
{
#ifdef GRANULE_EMULATED
    return __builtin_fmaf(a, b, c);
#else
    float sum;
    asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(sum) : "f"(a), "f"(b), "f"(c));
    return sum;
#endif
}

// The same of each of two f16 in a word.
__device__ inline u32 fused_f16(u32 a, u32 b, u32 c)
{
#ifdef GRANULE_EMULATED
    // Exact in a double where the result is an f16; then to an odd float, which cannot lie between two f16 but on the right side.
    const auto one = [](u32 x, u32 y, u32 z) -> u32 {
        const auto wide = [](u32 bits) { return static_cast<double>(to_f32(f16{static_cast<u16>(bits)})); };
        const double sum = wide(x) * wide(y) + wide(z);
        float near = static_cast<float>(sum);
        if (near == near && static_cast<double>(near) != sum) {
            u32 bits = bits_of(near);
            if ((static_cast<double>(near) > sum) == (near > 0)) bits--; // towards zero
            near = float_of(bits | 1);
        }
        return to_f16(near).bits;
    };
    return one(a, b, c) | one(a >> 16, b >> 16, c >> 16) << 16;
#else
    u32 sum;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
    return sum;
#endif
}

// Sums of two pairs of bf16; each sum is a bf16.
__device__ inline u32 exact_sum_bf16(u32 a, u32 b)
{
#ifdef GRANULE_EMULATED
    const auto value = [](u32 bits) { return float_of(bits << 16); };
    return to_bf16_pair(value(a) + value(b), value(a >> 16) + value(b >> 16));
#else
    u32 sum;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(0x3f803f80), "r"(b));
    return sum;
#endif
}

// The same number, which the compiler takes for another: what is computed from it is computed again, and does not lie in
// registers from the last time on.
__device__ inline u32 again(u32 x)
{
#ifndef GRANULE_EMULATED
    asm volatile("" : "+r"(x));
#endif
    return x;
}
