// Rows of f32 with a factor for each: what brings a library's products of scaled activations (`activate_f16`) to their size.
#include "intrinsics.cuh"

// from     tokens x rows, `from_stride` from one token to the next, in elements
// factors  one for each token
// out      tokens x rows, `out_stride` from one to the next; may be `from` itself, with the same stride
// adds     not 0: out += factor * from, instead of out = factor * from
// Grid: x over a token's rows, 256 to a thread block, y over tokens; any size does all of the work. Block: 256 threads.
extern "C" __global__ void __launch_bounds__(THREADS) scale_rows(
    const float *from, u64 from_stride, const float *factors, float *out, u64 out_stride, u64 tokens, u64 rows, u64 adds)
{
    for (u64 token = blockIdx.y; token < tokens; token += gridDim.y) {
        const float factor = load<float>(factors + token);
        const u64 step = u64{gridDim.x} * THREADS;
        for (u64 row = u64{blockIdx.x} * THREADS + threadIdx.x; row < rows; row += step) {
            const float x = factor * load<float>(from + token * from_stride + row);
            float *to = out + token * out_stride + row;
            store(to, adds != 0 ? load<float>(to) + x : x);
        }
    }
}
