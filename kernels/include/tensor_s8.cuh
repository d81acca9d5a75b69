// Tensor cores on bytes: products of small matrices of whole numbers, exact.
//
// With lane = 4 * g + t, four bytes to a word, the one of lowest index lowest (PTX ISA, "Matrix Fragments for mma.m16n8k32"):
//
//   a, 16 x 32    word 0: row g, columns 4t to 4t+3    word 1: row g+8, the same    words 2, 3: columns 16 further on
//   b, 32 x 8     word 0: column g, rows 4t to 4t+3                                 word 1: rows 16 further on
//   c, 16 x 8     values 0, 1: row g, columns 2t and 2t+1                           values 2, 3: row g+8
#pragma once

#include "tensor.cuh"

struct MatrixC32 {
    i32 value[4];
};

#ifdef GRANULE_EMULATED
// SIGNED: whether the bytes of `a` are.
template <bool SIGNED> struct MultiplyBytesTwin {
    struct Lane {
        MatrixA a;
        MatrixB b;
        MatrixC32 c;
    };

    static i32 byte(u32 word, u32 i) { return static_cast<i8>(word >> (8 * i)); }
    static i32 byte_of_a(u32 word, u32 i) { return SIGNED ? byte(word, i) : static_cast<u8>(word >> (8 * i)); }

    static void together(const void *inputs, void *outputs)
    {
        const Lane *lanes = static_cast<const Lane *>(inputs);
        MatrixC32 *to = static_cast<MatrixC32 *>(outputs);
        i32 a[16][32], b[32][8];
        for (u32 lane = 0; lane < WARP; lane++) {
            const u32 g = lane / 4, t = lane % 4;
            for (u32 i = 0; i < 16; i++) {
                a[g + i / 4 % 2 * 8][4 * t + i % 4 + i / 8 * 16] = byte_of_a(lanes[lane].a.word[i / 4], i % 4);
            }
            for (u32 i = 0; i < 8; i++) b[4 * t + i % 4 + i / 4 * 16][g] = byte(lanes[lane].b.word[i / 4], i % 4);
        }
        for (u32 lane = 0; lane < WARP; lane++) {
            for (u32 i = 0; i < 4; i++) {
                const u32 row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
                i32 sum = lanes[lane].c.value[i];
                for (u32 k = 0; k < 32; k++) sum += a[row][k] * b[k][column];
                to[lane].value[i] = sum;
            }
        }
    }
};
#endif

// c += a b, of bytes: those of `a` signed or not, those of `b` signed. All lanes of the warp take part.
template <bool SIGNED> __device__ inline void multiply_add_bytes(MatrixC32 &c, const MatrixA &a, const MatrixB &b GRANULE_WHERE)
{
#ifdef GRANULE_EMULATED
    using Twin = MultiplyBytesTwin<SIGNED>;
    const typename Twin::Lane mine{a, b, c};
    granule_emu_warp_together(ALL_LANES, &mine, sizeof mine, &c, sizeof c, Twin::together, file, line);
#else
    if constexpr (SIGNED) {
        asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+r"(c.value[0]), "+r"(c.value[1]), "+r"(c.value[2]), "+r"(c.value[3])
            : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b.word[0]), "r"(b.word[1]));
    } else {
        asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+r"(c.value[0]), "+r"(c.value[1]), "+r"(c.value[2]), "+r"(c.value[3])
            : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b.word[0]), "r"(b.word[1]));
    }
#endif
}

// c += a b, of signed bytes.
__device__ inline void multiply_add_s8(MatrixC32 &c, const MatrixA &a, const MatrixB &b GRANULE_WHERE)
{
#ifdef GRANULE_EMULATED
    multiply_add_bytes<true>(c, a, b, file, line);
#else
    multiply_add_bytes<true>(c, a, b);
#endif
}
