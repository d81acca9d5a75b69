// The twins of tensor.cuh: products and loads of matrices against the layouts of the PTX ISA, and one mistake each.
#include "tensor_s8.cuh"

// Row and column of element `i` of a lane's fragment, from the formulas of the PTX ISA ("Matrix Fragments for mma.m16n8k16
// with floating point type"), where groupID is lane >> 2 and threadID_in_group lane % 4.
struct Place {
    u32 row, column;
};
__device__ inline Place place_in_a(u32 lane, u32 i)
{
    const bool upper = i < 2 || (4 <= i && i < 6);
    return {upper ? lane >> 2 : (lane >> 2) + 8, i < 4 ? lane % 4 * 2 + (i & 1) : lane % 4 * 2 + (i & 1) + 8};
}
__device__ inline Place place_in_b(u32 lane, u32 i)
{
    return {i < 2 ? lane % 4 * 2 + (i & 1) : lane % 4 * 2 + (i & 1) + 8, lane >> 2};
}
__device__ inline Place place_in_c(u32 lane, u32 i)
{
    return {i < 2 ? lane >> 2 : (lane >> 2) + 8, lane % 4 * 2 + (i & 1)};
}

__device__ inline MatrixA gather_a(const u16 *a, u32 lane)
{
    MatrixA to{};
    for (u32 i = 0; i < 8; i++) {
        const Place at = place_in_a(lane, i);
        to.word[i / 2] |= static_cast<u32>(a[at.row * 16 + at.column]) << (i % 2 * 16);
    }
    return to;
}
__device__ inline MatrixB gather_b(const u16 *b, u32 lane)
{
    MatrixB to{};
    for (u32 i = 0; i < 4; i++) {
        const Place at = place_in_b(lane, i);
        to.word[i / 2] |= static_cast<u32>(b[at.row * 8 + at.column]) << (i % 2 * 16);
    }
    return to;
}
__device__ inline MatrixC gather_c(const float *c, u32 lane)
{
    MatrixC to;
    for (u32 i = 0; i < 4; i++) to.value[i] = c[place_in_c(lane, i).row * 8 + place_in_c(lane, i).column];
    return to;
}
__device__ inline void scatter_c(const MatrixC &from, float *c, u32 lane)
{
    for (u32 i = 0; i < 4; i++) c[place_in_c(lane, i).row * 8 + place_in_c(lane, i).column] = from.value[i];
}

// a: 16 x 16 and b: 16 x 8 elements, c and to: 16 x 8 f32, all by rows. to = c + a b. One warp.
extern "C" __global__ void multiply_f16(const u16 *a, const u16 *b, const float *c, float *to)
{
    const u32 lane = threadIdx.x;
    MatrixC sum = gather_c(c, lane);
    multiply_add_f16(sum, gather_a(a, lane), gather_b(b, lane));
    scatter_c(sum, to, lane);
}
extern "C" __global__ void multiply_bf16(const u16 *a, const u16 *b, const float *c, float *to)
{
    const u32 lane = threadIdx.x;
    MatrixC sum = gather_c(c, lane);
    multiply_add_bf16(sum, gather_a(a, lane), gather_b(b, lane));
    scatter_c(sum, to, lane);
}

// Row and column of byte `i` of a lane's fragment, from the formulas of the PTX ISA ("Matrix Fragments for mma.m16n8k32").
__device__ inline Place place_in_bytes_a(u32 lane, u32 i)
{
    const bool upper = i < 4 || (8 <= i && i < 12);
    return {upper ? lane >> 2 : (lane >> 2) + 8, i < 8 ? lane % 4 * 4 + (i & 3) : lane % 4 * 4 + (i & 3) + 16};
}
__device__ inline Place place_in_bytes_b(u32 lane, u32 i)
{
    return {i < 4 ? lane % 4 * 4 + (i & 3) : lane % 4 * 4 + (i & 3) + 16, lane >> 2};
}

// a: 16 x 32 and b: 32 x 8 signed bytes, c and to: 16 x 8 whole numbers, all by rows. to = c + a b. One warp.
extern "C" __global__ void multiply_s8(const u8 *a, const u8 *b, const i32 *c, i32 *to)
{
    const u32 lane = threadIdx.x;
    MatrixA left{};
    MatrixB right{};
    MatrixC32 sum;
    for (u32 i = 0; i < 16; i++) {
        const Place at = place_in_bytes_a(lane, i);
        left.word[i / 4] |= static_cast<u32>(a[at.row * 32 + at.column]) << (i % 4 * 8);
    }
    for (u32 i = 0; i < 8; i++) {
        const Place at = place_in_bytes_b(lane, i);
        right.word[i / 4] |= static_cast<u32>(b[at.row * 8 + at.column]) << (i % 4 * 8);
    }
    for (u32 i = 0; i < 4; i++) sum.value[i] = c[place_in_c(lane, i).row * 8 + place_in_c(lane, i).column];
    multiply_add_s8(sum, left, right);
    for (u32 i = 0; i < 4; i++) to[place_in_c(lane, i).row * 8 + place_in_c(lane, i).column] = sum.value[i];
}

// from: 32 x 8 elements, by rows: four matrices. to: 14 words for each lane of one warp: what ldmatrix gives of one, two and
// four matrices, plain and transposed. The rows lie apart in shared memory, as a swizzled tile's do.
extern "C" __global__ void matrices(const u16 *from, u32 *to)
{
    __shared__ __align__(16) u16 rows[32][24];
    const u32 lane = threadIdx.x;
    for (u32 i = 0; i < 8; i++) rows[lane][8 + i] = from[lane * 8 + i];
    __syncwarp();
    u32 one[1], two[2], four[4], *const mine = to + lane * 14;
    // Lanes whose address does not count have one that nobody wrote.
    load_matrices<1, false>(one, lane < 8 ? &rows[lane][8] : &rows[0][0]);
    mine[0] = one[0];
    load_matrices<1, true>(one, lane < 8 ? &rows[lane][8] : &rows[0][0]);
    mine[1] = one[0];
    load_matrices<2, false>(two, lane < 16 ? &rows[lane][8] : &rows[0][0]);
    for (u32 i = 0; i < 2; i++) mine[2 + i] = two[i];
    load_matrices<2, true>(two, lane < 16 ? &rows[lane][8] : &rows[0][0]);
    for (u32 i = 0; i < 2; i++) mine[4 + i] = two[i];
    load_matrices<4, false>(four, &rows[lane][8]);
    for (u32 i = 0; i < 4; i++) mine[6 + i] = four[i];
    load_matrices<4, true>(four, &rows[lane][8]);
    for (u32 i = 0; i < 4; i++) mine[10 + i] = four[i];
}

// from, to: n words, n a multiple of 128. A copy by one warp through a ring of two stages, as kernels do it.
extern "C" __global__ void ring_copy(const u32 *from, u32 *to, u32 n)
{
    __shared__ __align__(16) u32 stage[2][128];
    const u32 mine = 4 * threadIdx.x;
    copy_async(&stage[0][mine], from + mine);
    commit_async();
    for (u32 i = 0; i < n; i += 128) {
        const u32 now = i / 128 % 2;
        if (i + 128 < n) copy_async(&stage[1 - now][mine], from + i + 128 + mine);
        commit_async();
        wait_async<1>();
        __syncthreads();
        for (u32 k = threadIdx.x; k < 128; k += WARP) to[i + k] = stage[now][k];
        __syncthreads();
    }
}

// Uninitialized: the second round reads its stage before the wait. What the first round left there is no excuse.
extern "C" __global__ void ring_without_wait(const u32 *from, u32 *to, u32 n)
{
    __shared__ __align__(16) u32 stage[128];
    const u32 mine = 4 * threadIdx.x;
    for (u32 i = 0; i < n; i += 128) {
        copy_async(&stage[mine], from + i + mine);
        commit_async();
        if (i == 0) wait_async<0>();
        __syncthreads();
        for (u32 k = threadIdx.x; k < 128; k += WARP) to[i + k] = stage[k];
        __syncthreads();
    }
    wait_async<0>();
}

// Race: the next copy starts while other threads still read what it overwrites. The barrier before its wait comes too late.
extern "C" __global__ void overtaking_copy(const u32 *from, u32 *to)
{
    __shared__ __align__(16) u32 stage[128];
    const u32 mine = 4 * threadIdx.x;
    copy_async(&stage[mine], from + mine);
    commit_async();
    wait_async<0>();
    __syncthreads();
    to[threadIdx.x] = stage[127 - threadIdx.x];
    copy_async(&stage[mine], from + 128 + mine);
    commit_async();
    __syncthreads();
    wait_async<0>();
}

// Divergence: lane `without` goes round the product; lane 32: nobody.
extern "C" __global__ void lane_goes_round(float *to, u32 without)
{
    MatrixC sum{};
    if (threadIdx.x != without) multiply_add_f16(sum, MatrixA{}, MatrixB{});
    __syncwarp();
    to[threadIdx.x] = sum.value[0];
}

// Divergence: a lane has left before the matrices are loaded.
extern "C" __global__ void lane_has_left(u32 *to)
{
    __shared__ __align__(16) u16 rows[32][8];
    for (u32 i = 0; i < 8; i++) rows[threadIdx.x][i] = 0;
    __syncwarp();
    if (threadIdx.x == 31) return;
    u32 words[2];
    load_matrices<2, false>(words, rows[threadIdx.x]);
    to[threadIdx.x] = words[0];
}

// Divergence: two halves of the warp at two products.
extern "C" __global__ void two_products(float *to)
{
    MatrixC sum{};
    if (threadIdx.x < 16) {
        multiply_add_f16(sum, MatrixA{}, MatrixB{});
    } else {
        multiply_add_f16(sum, MatrixA{}, MatrixB{});
    }
    to[threadIdx.x] = sum.value[0];
}

// Illegal address: a row of a matrix that is no multiple of 16 bytes away.
extern "C" __global__ void misaligned_row(u32 *to)
{
    __shared__ __align__(16) u16 rows[32][12];
    for (u32 i = 0; i < 12; i++) rows[threadIdx.x][i] = 0;
    __syncwarp();
    u32 words[4];
    load_matrices<4, false>(words, rows[threadIdx.x]);
    to[threadIdx.x] = words[0];
}
