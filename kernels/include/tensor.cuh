// Tensor cores: products of small matrices that a warp holds together, what feeds them, and copies that run meanwhile.
//
// A matrix lies spread over the 32 lanes of a warp, a few elements ("fragment") in each. With lane = 4 * g + t (g of 0 to
// 7, t of 0 to 3), and two 16-bit elements to a word, the one of lower index in its lower half (PTX ISA, "Matrix Fragments
// for mma.m16n8k16 with floating point type"):
//
//   a, 16 x 16    word 0: row g, columns 2t and 2t+1    word 1: row g+8, the same    words 2, 3: columns 8 further on
//   b, 16 x 8     word 0: column g, rows 2t and 2t+1                                 word 1: rows 8 further on
//   c, 16 x 8     values 0, 1: row g, columns 2t and 2t+1                            values 2, 3: row g+8
//
// So two neighbouring `c` (16 x 16 in all), rounded to 16 bits, are an `a` as they lie: what attention does with its
// weights, which go from one product into the next without leaving their registers.
#pragma once

#include "intrinsics.cuh"

// Declares `name`, the dynamic shared memory of a thread block, 16-byte aligned.
#if !defined(GRANULE_EMULATED) && !defined(GRANULE_DYNAMIC_SHARED)
#define GRANULE_DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]
#endif

// Where a twin was called from, for the emulator's messages.
#ifdef GRANULE_EMULATED
#define GRANULE_WHERE , const char *file = __builtin_FILE(), int line = __builtin_LINE()
#else
#define GRANULE_WHERE
#endif

struct MatrixA {
    u32 word[4];
};
struct MatrixB {
    u32 word[2];
};
struct MatrixC {
    float value[4];
};

// What tensor cores promise. The product of two elements is exact: it has 22 bits (f16) or 16 (bf16), and cores keep at
// least the precision of f32. How products are added up, and how sums are rounded, the PTX ISA leaves open, and it differs:
// those of sm_80 add several products and `c` at once, aligned to the largest of them, and cut what hangs over (Fasi,
// Higham, Mikaitis and Pranesh, "Numerical behavior of NVIDIA tensor cores", 2021). Each of the 16 additions loses less
// than one unit in the last place of the largest sum that there can be:
//
//   |d - (c + a b)| <= 16 * 2^-23 * (|c| + |a| |b|)
//
// That bound is what tests hold results against, and all that a kernel may build on: equal inputs give equal results on one
// device, not on two. The twin adds in the order of k and rounds each sum to nearest. Subnormal elements count.

#ifdef GRANULE_EMULATED
template <typename Element> struct MultiplyTwin {
    struct Lane {
        MatrixA a;
        MatrixB b;
        MatrixC c;
    };

    static float element(u32 word, u32 half) { return to_f32(Element{static_cast<u16>(word >> (16 * half))}); }

    static void together(const void *inputs, void *outputs)
    {
        const Lane *lanes = static_cast<const Lane *>(inputs);
        MatrixC *to = static_cast<MatrixC *>(outputs);
        float a[16][16], b[16][8];
        for (u32 lane = 0; lane < WARP; lane++) {
            const u32 g = lane / 4, t = lane % 4;
            for (u32 i = 0; i < 8; i++) {
                a[g + i / 2 % 2 * 8][2 * t + i % 2 + i / 4 * 8] = element(lanes[lane].a.word[i / 2], i % 2);
            }
            for (u32 i = 0; i < 4; i++) {
                b[2 * t + i % 2 + i / 2 * 8][g] = element(lanes[lane].b.word[i / 2], i % 2);
            }
        }
        for (u32 lane = 0; lane < WARP; lane++) {
            for (u32 i = 0; i < 4; i++) {
                const u32 row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
                float sum = lanes[lane].c.value[i];
                for (u32 k = 0; k < 16; k++) sum += a[row][k] * b[k][column];
                to[lane].value[i] = sum;
            }
        }
    }
};
#endif

// c += a b, of f16. All lanes of the warp take part.
__device__ inline void multiply_add_f16(MatrixC &c, const MatrixA &a, const MatrixB &b GRANULE_WHERE)
{
#ifdef GRANULE_EMULATED
    const MultiplyTwin<f16>::Lane mine{a, b, c};
    granule_emu_warp_together(ALL_LANES, &mine, sizeof mine, &c, sizeof c, MultiplyTwin<f16>::together, file, line);
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c.value[0]), "+f"(c.value[1]), "+f"(c.value[2]), "+f"(c.value[3])
        : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b.word[0]), "r"(b.word[1]));
#endif
}

// c += a b, of bf16. All lanes of the warp take part.
__device__ inline void multiply_add_bf16(MatrixC &c, const MatrixA &a, const MatrixB &b GRANULE_WHERE)
{
#ifdef GRANULE_EMULATED
    const MultiplyTwin<bf16>::Lane mine{a, b, c};
    granule_emu_warp_together(ALL_LANES, &mine, sizeof mine, &c, sizeof c, MultiplyTwin<bf16>::together, file, line);
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c.value[0]), "+f"(c.value[1]), "+f"(c.value[2]), "+f"(c.value[3])
        : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b.word[0]), "r"(b.word[1]));
#endif
}

// A place in shared memory, as the instructions below take it: 32 bits on a GPU, where half of the arithmetic on addresses
// is thus saved.
struct SharedPlace {
#ifdef GRANULE_EMULATED
    u8 *at;
#else
    u32 at;
#endif

    __device__ SharedPlace(void *pointer)
    {
#ifdef GRANULE_EMULATED
        at = static_cast<u8 *>(pointer);
#else
        asm("{ .reg .u64 wide; cvta.to.shared.u64 wide, %1; cvt.u32.u64 %0, wide; }" : "=r"(at) : "l"(pointer));
#endif
    }
    __device__ SharedPlace operator+(u32 bytes) const
    {
        SharedPlace place = *this;
        place.at += bytes;
        return place;
    }
};

// Loads COUNT (1, 2 or 4) matrices of 8 x 8 16-bit elements from shared memory, word i from matrix i: of row g the elements
// 2t and 2t+1, or TRANSPOSED of column g those of rows 2t and 2t+1. Lane l says where row l % 8 of matrix l / 8 begins: 8
// elements in a row, at a multiple of 16 bytes; what lanes from 8 * COUNT on say does not count. All lanes of the warp take
// part. (PTX ISA, ldmatrix.)
template <u32 COUNT, bool TRANSPOSED>
__device__ inline void load_matrices(u32 (&to)[COUNT], SharedPlace row GRANULE_WHERE)
{
    static_assert(COUNT == 1 || COUNT == 2 || COUNT == 4, "as many as ldmatrix takes");
#ifdef GRANULE_EMULATED
    struct Words {
        u32 word[COUNT];
    };
    Wide mine{};
    if (threadIdx.x % WARP < 8 * COUNT) mine = load<Wide>(row.at);
    const auto together = [](const void *inputs, void *outputs) {
        const Wide *rows = static_cast<const Wide *>(inputs);
        Words *words = static_cast<Words *>(outputs);
        const auto element = [&](u32 r, u32 k) { return rows[r].word[k / 2] >> (k % 2 * 16) & 0xffff; };
        for (u32 lane = 0; lane < WARP; lane++) {
            const u32 g = lane / 4, t = lane % 4;
            for (u32 i = 0; i < COUNT; i++) {
                const u32 low = TRANSPOSED ? element(8 * i + 2 * t, g) : element(8 * i + g, 2 * t);
                const u32 high = TRANSPOSED ? element(8 * i + 2 * t + 1, g) : element(8 * i + g, 2 * t + 1);
                words[lane].word[i] = low | high << 16;
            }
        }
    };
    Words got;
    granule_emu_warp_together(ALL_LANES, &mine, sizeof mine, &got, sizeof got, together, file, line);
    for (u32 i = 0; i < COUNT; i++) to[i] = got.word[i];
#else
    if constexpr (COUNT == 1 && !TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(to[0]) : "r"(row.at) : "memory");
    } else if constexpr (COUNT == 1) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(to[0]) : "r"(row.at) : "memory");
    } else if constexpr (COUNT == 2 && !TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                     : "=r"(to[0]), "=r"(to[1])
                     : "r"(row.at)
                     : "memory");
    } else if constexpr (COUNT == 2) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                     : "=r"(to[0]), "=r"(to[1])
                     : "r"(row.at)
                     : "memory");
    } else if constexpr (!TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(row.at)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(row.at)
                     : "memory");
    }
#endif
}

// Starts a copy of 16 bytes from global to shared memory, both at a multiple of 16, past the first-level cache. Nothing may
// read or write the target until the thread has waited for it, and no other thread before a barrier behind that.
__device__ inline void copy_async(SharedPlace to, const void *from)
{
#ifdef GRANULE_EMULATED
    granule_emu_async_copy(to.at, from, 16, 16);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to.at), "l"(from) : "memory");
#endif
}

// The same of the first `valid` bytes, at most 16; zeros arrive for the others, which are not read.
__device__ inline void copy_async(SharedPlace to, const void *from, u32 valid)
{
#ifdef GRANULE_EMULATED
    granule_emu_async_copy(to.at, from, 16, valid);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to.at), "l"(from), "r"(valid) : "memory");
#endif
}

// Closes a group: the copies that this thread has started since the last one, none at all too.
__device__ inline void commit_async()
{
#ifdef GRANULE_EMULATED
    granule_emu_async_commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until all groups of this thread have arrived, the latest LEFT excepted.
template <u32 LEFT> __device__ inline void wait_async()
{
#ifdef GRANULE_EMULATED
    granule_emu_async_wait(LEFT);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#endif
}
