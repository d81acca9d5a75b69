// Reads weights in every way that `weights.cuh` has: for its test, and never shipped.
//
// Each kernel takes the planes of `runs` runs: elements in f32 to `x`, runs x 32; the same in f16 to `pairs`. A thread a run.
#include "weights.cuh"

template <typename T>
__device__ inline void read_weights(const Planes &planes, u64 runs, float *x, u32 *pairs)
{
    for (u64 r = u64{blockIdx.x} * THREADS + threadIdx.x; r < runs; r += u64{gridDim.x} * THREADS) {
        // The two ways to read it.
        const RunBits<T> bits = r % 3 == 0 ? load_bits<T>(planes, r) : load_bits<T, true>(planes, r);
        const Run<T> run = expanded<T>(bits);
        for (u32 n = 0; n < 8; n++) {
            float value[4];
            values_of<T>(run, n, value);
            for (u32 k = 0; k < 4; k++) x[r * 32 + 4 * n + k] = value[k];
        }
        u32 pair[16];
        halves_of<T>(bits, pair);
        for (u32 i = 0; i < 16; i++) pairs[r * 16 + i] = pair[i];
    }
}

#define READER(name, T)                                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS) weights_##name(                                                    \
        const u8 *low, const u8 *high, const u8 *scales, const u8 *d, u64 runs, float *x, u32 *pairs)                        \
    {                                                                                                                        \
        read_weights<T>(Planes{low, high, scales, d}, runs, x, pairs);                                                       \
    }

READER(q8_0, Q8_0)
READER(q4_0, Q4_0)
READER(q4_1, Q4_1)
READER(q5_0, Q5_0)
READER(q5_1, Q5_1)
READER(q2_k, Q2_K)
READER(q3_k, Q3_K)
READER(q4_k, Q4_K)
READER(q5_k, Q5_K)
READER(q6_k, Q6_K)
READER(iq4_nl, IQ4_NL)
READER(iq4_xs, IQ4_XS)
READER(iq2_xxs, IQ2_XXS)
