// Products of weights with the activations of many tokens, on tensor cores: out[t][r] = sum_c x[t][c] * w[r][c], or += that.
//
// x in one of the forms of `activate.cu`, with rows that begin at multiples of 16 bytes (`pitch`):
//
//   F16, for quantized and f16 weights    f16 of x times a power of two for each row, and what takes it off again
//   Bf16, for bf16 and f32 weights        bf16 of x, and bf16 of what that leaves
//
// Weights lie in planes (weights.cuh). Up to four matrices of one type and one length of rows go into one launch. Grid: x alone,
// the tiles of all of them, one matrix after the other. Block: 256 threads, with the dynamic shared memory that `shared_bytes`
// in the launcher counts: two blocks fit into a multiprocessor of 228 KiB (H100 and on), by registers too; one of 164 (A100)
// holds two of the types that are converted, and one of f16 and bf16.
//
// **Work.** A thread block computes a tile of tokens x weight rows, of a shape that the launcher chooses: few tokens or few
// rows make more blocks of smaller tiles. It goes along the columns in steps. Whatever the tile, a step is 128 lines of 64
// elements of w (where the tile has fewer rows, each has several lines in a step), and of x as many lines as belong to them:
//
//   tokens      x rows    columns in a step    lines of x          warps: down x across, parts of a step's columns
//   128         x 128      64                  128                 2 x 4, 1
//    64, 32     x 128      64                   64, 32             1 x 4, 2
//    64, 32     x  64     128                  128, 64             1 x 2, 4
//    32         x  32     256                  128                 1 x 1, 8
//
// so that one loop serves all of them: a warp has up to 64 tokens x 32 rows of one part of the columns, in its registers, and
// the parts are added up at the end, in their order. Which block computes what makes no difference to a result.
//
// Lines of x come by cp.async, two steps ahead. So do those of f16 and bf16 weights, which need no conversion. Of others a
// thread has one run (32 elements: half a line) in each step: it loads the run's bytes into registers a step ahead, and makes
// them a half line when it is done with the products of the step before, while other warps still multiply. One barrier a step.
//
// **What limits it,** by count, in the largest tile; no GPU has seen it yet. A warp's step has 64 mma and in all about 280 (Q8_0),
// 350 (Q4_K) to 440 (IQ4_XS) instructions, so 4.4 to 6.9 for each mma (f16 weights: 3.6). Shared memory takes 8 cycles a mma: 6
// for fragments, which two to four warps load each, and 2 for filling it. An H200 multiplies as much in 4 cycles by instructions
// of its own (wgmma), and in 6.4 by these (Luo et al., "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture via
// Microbenchmarking", 2024): so shared memory binds, at half of the device's peak. An A100 has 8 cycles for all three.
//
// **Numbers.** bf16 weights meet both terms of x, one step after the other; f32 weights are two terms as well (the product of
// both second ones is left out). What tensor cores promise stands in tensor.cuh, what comes of it at the launcher.
#include "tensor.cuh"
#include "weights.cuh"

constexpr u32 WARPS = THREADS / WARP;
// Lines of a step, their elements, and their 16-byte pieces.
constexpr u32 LINES = 128;
constexpr u32 LINE = 64;
constexpr u32 PIECES = LINE * 2 / 16;
constexpr u32 LINE_BYTES = LINE * 2;
constexpr u32 STEP_BYTES = LINES * LINE_BYTES;
// Steps in shared memory: of what comes by cp.async, and of what is converted: then a step's place is a bit.
constexpr u32 STAGES = 3;
constexpr u32 CONVERTED = 2;
// Steps ahead of what a thread loads that it asks for what it will load.
constexpr u32 AHEAD = 3;
// Tokens and weight rows of a warp, at most.
constexpr u32 WARP_TOKENS = 64;
constexpr u32 WARP_ROWS = 32;
// Matrices of a launch.
constexpr u32 JOBS = 4;
// Elements of a run.
constexpr u32 RUN = BLOCK_LEN;
// Token tiles that go with each weight tile before the next one comes: so blocks that run together share both.
constexpr u32 GROUP = 16;
static_assert(THREADS * RUN == LINES * LINE, "each thread converts one run");

// One weight and where its product goes.
struct MatmulJob {
    Planes planes; // of floats `low` alone
    float *out;    // tokens x rows
    u32 rows;
    u32 first;     // tile of the grid's
    u32 adds;      // not 0: out += instead of out =
    u32 tile;      // its tokens and its rows: their logarithms to base 2, in the lower and in the upper half
};

struct Matmul {
    const u8 *x;    // tokens x pitch: f16, or the first terms
    const u8 *rest; // F16: an f32 for each token; Bf16: the second terms, as the first ones lie
    MatmulJob jobs[JOBS];
    u32 n_jobs, tokens, cols;
    u32 pitch; // bytes of a row of x
};
static_assert(sizeof(MatmulJob) == 56 && sizeof(Matmul) == 2 * 8 + JOBS * 56 + 4 * 4);

// Where a 16-byte piece of a line is in a step: in an order of its own in each of eight lines, so that eight lines' pieces of
// one place are in different banks.
__device__ inline u32 line_place(u32 line, u32 piece) { return line * LINE_BYTES + (piece ^ (line & 7)) * 16; }

// Bytes that a row of `cols` elements of `size` bytes takes.
__device__ inline u32 padded(u32 cols, u32 size) { return (cols * size + 15) & ~15u; }

// What a tile and its steps are cut into: see above.
struct Cut {
    u32 tokens_log2, rows_log2;

    __device__ u32 tokens() const { return 1u << tokens_log2; }
    __device__ u32 rows() const { return 1u << rows_log2; }
    __device__ u32 columns() const { return LINES * LINE >> rows_log2; }
    __device__ u32 x_lines() const { return LINES >> (rows_log2 - tokens_log2); }
    // Warps beside one another, of one part, and parts.
    __device__ u32 across() const { return rows() / WARP_ROWS; }
    __device__ u32 of_part_log2() const { return rows_log2 - 5 + tokens_log2 / 7; }
    __device__ u32 parts() const { return WARPS >> of_part_log2(); }
    // A part is 32 elements of each line that it has, but for the only one, which is all of them.
    __device__ bool whole() const { return parts() == 1; }
    // The warp that has the first part of a token and a row of the tile.
    __device__ u32 warp_of(u32 token, u32 row) const { return token / WARP_TOKENS * across() + row / WARP_ROWS; }
};

// Lines of 16-bit elements of a tile's rows: each thread copies the same piece of four of them in each step.
struct Lines {
    const u8 *from; // the first row
    u32 pitch, rows;
    u32 rows_log2, lines;
    u32 offset;              // of the first of the four, bytes from there
    u32 second, third, last; // from it to the second and to the third, and from that to the last
    u32 place;               // of the first in a step; the others are each a quarter of a step further on

    // Of 2^log2 rows `pitch` bytes apart, of which there are `rows`: the last one again and again behind it.
    __device__ Lines(const u8 *first, u32 pitch, u32 rows, u32 log2, u32 lines)
        : from(first), pitch(pitch), rows(rows), rows_log2(log2), lines(lines)
    {
        const u32 line = threadIdx.x / PIECES, piece = threadIdx.x % PIECES;
        const auto line_at = [&](u32 j) { return row_of(line + j * (LINES / 4)) * pitch + (line + j * (LINES / 4) >> log2) * LINE_BYTES; };
        offset = again(line_at(0) + piece * 16);
        second = again(line_at(1) - line_at(0));
        third = again(line_at(2) - line_at(0));
        last = again(line_at(3) - line_at(2));
        place = again(line_place(line, piece));
    }
    __device__ u32 row_of(u32 line) const
    {
        const u32 row = line & ((1u << rows_log2) - 1);
        return row < rows ? row : rows - 1;
    }
    // Starts the copies of columns `k` to `k + columns`, of rows that lie `behind` bytes further on, with zeros beyond `cols`.
    __device__ void fetch(SharedPlace step, u64 behind, u32 k, u32 columns, u32 cols) const
    {
        const SharedPlace to = step + place;
        const u8 *start = from + behind + u64{k} * 2;
        if (k + columns <= cols) {
            const u8 *piece = start + offset;
            copy_async(to, piece);
            if (lines <= LINES / 4) return;
            copy_async(to + STEP_BYTES / 4, piece + second);
            if (lines <= LINES / 2) return;
            copy_async(to + STEP_BYTES / 2, piece + third);
            copy_async(to + STEP_BYTES / 4 * 3, piece + third + last);
            return;
        }
        ROLLED for (u32 line = threadIdx.x / PIECES, at = 0; line < lines; line += LINES / 4, at += STEP_BYTES / 4) {
            const u32 piece = (line >> rows_log2) * LINE + threadIdx.x % PIECES * 8;
            const u32 left = k + piece < cols ? cols - k - piece : 0;
            copy_async(to + at, left > 0 ? start + row_of(line) * pitch + piece * 2 : from, (left < 8 ? left : 8) * 2);
        }
    }
};

// A step is one part of the columns and one of the terms; which, from one step to the next.
template <u32 TERMS> struct Position {
    u32 column, term;

    __device__ void next(u32 columns)
    {
        if (++term < TERMS) return;
        term = 0;
        column += columns;
    }
};

// Weights whose lines come as they are.
template <bool BFLOAT> struct Halves {
    static constexpr bool BF = BFLOAT, DIRECT = true;
    static constexpr u32 TERMS = BFLOAT ? 2 : 1;
    struct Held {};
};

// Weights of f32: loaded when they are converted, since the 32 words of a run are too many to hold meanwhile.
struct Singles {
    static constexpr bool BF = true, DIRECT = false;
    static constexpr u32 TERMS = 3;
    struct Held {
        const u8 *from;
        u32 pieces; // that there are from there on
    };
    __device__ static Held hold(const Planes &planes, u32 cols, u32 row, u32 column)
    {
        const u32 pitch = padded(cols, 4), at = column * 4, left = (pitch - at) / 16;
        return Held{planes.low + u64{row} * pitch + at, left < 8 ? left : 8};
    }
    __device__ static void prefetch(const Planes &planes, u32 cols, u32 row, u32 column)
    {
        prefetch_sector(hold(planes, cols, row, column).from);
    }
    // Of element x the first term, or what it leaves.
    __device__ static void words(const Held &held, u32 term, Wide (&to)[4])
    {
        Wide x[8] = {};
        UNROLLED for (u32 i = 0; i < 8; i++) {
            if (i < held.pieces) x[i] = load<Wide>(held.from + i * 16);
        }
        UNROLLED for (u32 i = 0; i < 16; i++) {
            const float low = float_of(x[i / 2].word[i % 2 * 2]), high = float_of(x[i / 2].word[i % 2 * 2 + 1]);
            const u32 first = to_bf16_pair(low, high);
            to[i / 4].word[i % 4] =
                term < 2 ? first : to_bf16_pair(low - float_of(first << 16), high - float_of(first & 0xffff0000));
        }
    }
};

// Weights in blocks.
template <typename T> struct Blocks {
    static constexpr bool BF = false, DIRECT = false;
    static constexpr u32 TERMS = 1;
    using Held = RunBits<T>;

    __device__ static Held hold(const Planes &planes, u32 cols, u32 row, u32 column)
    {
        return load_bits<T>(planes, u64{row * (cols / RUN) + column / RUN});
    }
    __device__ static void prefetch(const Planes &planes, u32 cols, u32 row, u32 column)
    {
        prefetch_bits<T>(planes, u64{row * (cols / RUN) + column / RUN});
    }
    __device__ static void words(const Held &held, u32, Wide (&to)[4])
    {
        u32 pairs[16];
        halves_of<T>(held, pairs);
        UNROLLED for (u32 i = 0; i < 16; i++) to[i / 4].word[i % 4] = pairs[i];
    }
};

// What a warp holds of its products: 16 tokens x 8 rows in each.
using Sums = MatrixC[WARP_TOKENS / 16][WARP_ROWS / 8];

// sums += x w, of two times 16 columns; of the first 32 tokens alone, or `all` 64.
template <typename Weights>
__device__ inline void multiply(Sums &sums, SharedPlace x, SharedPlace w, u32 x_first, u32 w_first, bool all)
{
    UNROLLED for (u32 k = 0; k < 2; k++) {
        constexpr u32 ROWS_16 = 16 * LINE_BYTES;
        u32 b[WARP_ROWS / 16][4];
        MatrixA a[WARP_TOKENS / 16];
        UNROLLED for (u32 j = 0; j < WARP_ROWS / 16; j++) load_matrices<4, false>(b[j], w + (w_first ^ k * 32) + j * ROWS_16);
        UNROLLED for (u32 i = 0; i < WARP_TOKENS / 16; i++) {
            if (i == WARP_TOKENS / 32 && !all) break;
            load_matrices<4, false>(a[i].word, x + (x_first ^ k * 32) + i * ROWS_16);
        }
        UNROLLED for (u32 i = 0; i < WARP_TOKENS / 16; i++) {
            if (i == WARP_TOKENS / 32 && !all) break;
            UNROLLED for (u32 j = 0; j < WARP_ROWS / 8; j++) {
                const MatrixB right{{b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]}};
                if constexpr (Weights::BF) {
                    multiply_add_bf16(sums[i][j], a[i], right);
                } else {
                    multiply_add_f16(sums[i][j], a[i], right);
                }
            }
        }
    }
}

// COUNT numbers that follow one another.
template <u32 COUNT> struct alignas(4 * COUNT) Floats {
    float x[COUNT];
};

// Each warp leaves its sums in a place of its own in shared memory: 64 tokens of 32 rows, and 8 floats more than those, which
// keeps what a warp stores at once in different banks.
constexpr u32 SUMS_PITCH = WARP_ROWS + 8;
constexpr u32 SUMS = WARP_TOKENS * SUMS_PITCH;
static_assert(WARPS * SUMS * sizeof(float) <= (STAGES + CONVERTED) * STEP_BYTES);

// Where a block's tile goes.
struct Target {
    float *out;
    const float *factors; // of the tokens; null: all are 1
    u32 stride;           // from one token to the next
    u32 tokens, rows;     // that there are, from the tile's first on
    u32 adds;
};

// Adds the parts up, takes the tokens' factors off, stores: COUNT rows of weights at a time.
template <u32 COUNT> __device__ inline void finish(const Target &to, const Cut &cut)
{
    GRANULE_DYNAMIC_SHARED(u8, memory);
    const float *sums = reinterpret_cast<const float *>(memory);
    // Several at once, so that what is read and what is written do not wait for each other.
    constexpr u32 AT_ONCE = 4;
    const u32 log2 = cut.rows_log2 - (COUNT == 4 ? 2 : 0), pieces = cut.tokens() << log2;
    ROLLED for (u32 first = threadIdx.x; first < pieces; first += AT_ONCE * THREADS) {
        Floats<COUNT> result[AT_ONCE];
        u32 tokens[AT_ONCE], rows[AT_ONCE];
        bool there[AT_ONCE];
        UNROLLED for (u32 i = 0; i < AT_ONCE; i++) {
            const u32 piece = first + i * THREADS;
            tokens[i] = piece >> log2;
            rows[i] = (piece & ((1u << log2) - 1)) * COUNT;
            there[i] = piece < pieces && tokens[i] < to.tokens && rows[i] < to.rows;
            result[i] = Floats<COUNT>{};
            if (there[i] && to.adds != 0) result[i] = load<Floats<COUNT>>(to.out + u64{tokens[i]} * to.stride + rows[i]);
        }
        UNROLLED for (u32 i = 0; i < AT_ONCE; i++) {
            if (!there[i]) continue;
            const u32 warp = cut.warp_of(tokens[i], rows[i]);
            const float *from = sums + warp * SUMS + tokens[i] % WARP_TOKENS * SUMS_PITCH + rows[i] % WARP_ROWS;
            Floats<COUNT> sum = load<Floats<COUNT>>(from);
            ROLLED for (u32 part = 1; part < cut.parts(); part++) {
                from += SUMS << cut.of_part_log2();
                const Floats<COUNT> more = load<Floats<COUNT>>(from);
                UNROLLED for (u32 k = 0; k < COUNT; k++) sum.x[k] += more.x[k];
            }
            const float factor = to.factors == nullptr ? 1.0f : to.factors[tokens[i]];
            UNROLLED for (u32 k = 0; k < COUNT; k++) result[i].x[k] += sum.x[k] * factor;
            store(to.out + u64{tokens[i]} * to.stride + rows[i], result[i]);
        }
    }
}

// As many rows of weights at a time as `out` allows. Called, since inlined it would stand in every kernel once more.
__device__ __noinline__ void finish(float *out, const float *factors, u32 stride, u32 tokens, u32 rows, u32 adds,
                                    u32 tokens_log2, u32 rows_log2)
{
    const Target to{out, factors, stride, tokens, rows, adds};
    const Cut cut{tokens_log2, rows_log2};
    if (stride % 4 == 0) {
        finish<4>(to, cut);
    } else {
        finish<1>(to, cut);
    }
}

template <typename Weights> __device__ inline void matmul(const Matmul &to)
{
    GRANULE_DYNAMIC_SHARED(u8, memory);
    MatmulJob job = to.jobs[0];
    UNROLLED for (u32 i = 1; i < JOBS; i++) {
        if (i < to.n_jobs && blockIdx.x >= to.jobs[i].first) job = to.jobs[i];
    }
    const Cut cut{job.tile & 0xffff, job.tile >> 16};
    // Groups of token tiles, in each the weights' tiles, in each of those the group's.
    const u32 token_tiles = (to.tokens + cut.tokens() - 1) >> cut.tokens_log2;
    const u32 row_tiles = (job.rows + cut.rows() - 1) >> cut.rows_log2;
    const u32 tile = blockIdx.x - job.first, group = tile / (GROUP * row_tiles), in_group = tile % (GROUP * row_tiles);
    const u32 group_tiles = token_tiles - group * GROUP < GROUP ? token_tiles - group * GROUP : GROUP;
    const u32 first_token = (group * GROUP + in_group % group_tiles) << cut.tokens_log2;
    const u32 first_row = in_group / group_tiles << cut.rows_log2;
    const u32 tokens = to.tokens - first_token, rows = job.rows - first_row; // from there on

    const u32 columns = cut.columns(), cols = to.cols;
    const u32 n_steps = (cols + columns - 1) / columns * Weights::TERMS;
    // In shared memory first the steps of w, then those of x, and their places from the first of each.
    u8 *const x_steps = memory + (Weights::DIRECT ? STAGES : CONVERTED) * STEP_BYTES;
    const SharedPlace w_start = memory, x_start = x_steps;
    const Lines x_lines(to.x + u64{first_token} * to.pitch, to.pitch, tokens, cut.tokens_log2, cut.x_lines());
    const Lines w_lines(job.planes.low + u64{first_row} * padded(cols, 2), padded(cols, 2), rows, cut.rows_log2, LINES);
    const u64 terms = static_cast<u64>(to.rest - to.x); // from the first terms to the second
    // Of weights that are converted a thread has half a line.
    const u32 line = threadIdx.x / 2, half = threadIdx.x % 2, line_row = line & (cut.rows() - 1);
    const u32 run_row = again(first_row + (line_row < rows ? line_row : rows - 1));
    const u32 run_column = again((line >> cut.rows_log2) * LINE + half * RUN);
    const u32 run_place = again(line_place(line, half * 4)); // of its first piece; in the other places are other bits
    typename Weights::Held held{};

    const u32 warp = __shfl_sync(ALL_LANES, threadIdx.x / WARP, 0), lane = threadIdx.x % WARP; // so that it is seen to be one
    const u32 across = (warp & (cut.across() - 1)) * WARP_ROWS, part = warp >> cut.of_part_log2();
    const u32 down = (warp / cut.across() & (cut.tokens_log2 / 7)) * WARP_TOKENS;
    const u32 slab = cut.whole() ? 0 : part / 2, k = cut.whole() ? 0 : part % 2 * 32;
    // Of x, matrices 0 and 1 are tokens 0 to 7 and 8 to 15 of eight columns, 2 and 3 of the next eight; of w, 0 and 1 are 16
    // columns of eight rows, 2 and 3 of the next eight.
    const u32 x_line = (slab << cut.tokens_log2) + down + lane % 16;
    const u32 w_line = (slab << cut.rows_log2) + across + lane / 16 * 8 + lane % 8;
    const SharedPlace x_place = x_start + x_line * LINE_BYTES, w_place = w_start + w_line * LINE_BYTES;
    const u32 x_first = again(((k / 8 + lane / 16) ^ (x_line & 7)) * 16);
    const u32 w_first = again(((k / 8 + lane / 8 % 2) ^ (w_line & 7)) * 16);
    // The warp's tokens that there are, and how often it goes along 32 columns.
    const u32 here = tokens < cut.tokens() ? tokens : cut.tokens(), mine = down < here ? here - down : 0;
    const u32 times = mine == 0 ? 0 : cut.whole() ? 2 : 1;

    Sums sums;
    UNROLLED for (u32 i = 0; i < WARP_TOKENS / 16; i++) {
        UNROLLED for (u32 j = 0; j < WARP_ROWS / 8; j++) sums[i][j] = MatrixC{};
    }
    // A round starts the copies of one step, loads the runs of the one before, and computes the one before that.
    Position<Weights::TERMS> fetched{0, 0}, loaded{0, 0};
    u32 held_term = 0, in = 0, out = STEP_BYTES, converted = 0; // where steps come in, and are computed from: STAGES in turn
    ROLLED for (u32 left = n_steps + 2; left > 0; left--) {
        const bool computes = left <= n_steps;
        if constexpr (!Weights::DIRECT) {
            if (computes) {
                Wide words[4];
                Weights::words(held, held_term, words);
                UNROLLED for (u32 i = 0; i < 4; i++) store(memory + (run_place ^ i * 16 ^ converted), words[i]);
            }
        }
        wait_async<1>();
        __syncthreads();
        // Everybody is done with the step before, whose place the new one takes.
        if constexpr (!Weights::DIRECT) {
            if (left <= n_steps + 1 && left > 1) {
                const u32 column = loaded.column + run_column;
                held = {};
                held_term = loaded.term;
                if (column < cols) held = Weights::hold(job.planes, cols, run_row, column);
                // Small tiles are for weights that come from memory, and have little else to do until they do.
                const u32 ahead = column + AHEAD * columns;
                if (!cut.whole() && ahead < cols) Weights::prefetch(job.planes, cols, run_row, ahead);
                loaded.next(columns);
            }
        }
        if (left > 2) {
            x_lines.fetch(x_start + in, Weights::BF && fetched.term == 1 ? terms : 0, fetched.column, columns, cols);
            if constexpr (Weights::DIRECT) w_lines.fetch(w_start + in, 0, fetched.column, columns, cols);
            fetched.next(columns);
        }
        commit_async();
        in = in == (STAGES - 1) * STEP_BYTES ? 0 : in + STEP_BYTES;
        if (computes) {
            const SharedPlace x = x_place + out, w = w_place + (Weights::DIRECT ? out : converted);
            ROLLED for (u32 i = 0; i < times; i++) {
                multiply<Weights>(sums, x, w, x_first ^ i * 64, w_first ^ i * 64, mine > WARP_TOKENS / 2);
            }
            converted ^= STEP_BYTES;
        }
        out = out == (STAGES - 1) * STEP_BYTES ? 0 : out + STEP_BYTES;
    }
    __syncthreads();

    float *const own = reinterpret_cast<float *>(memory) + warp * SUMS + lane / 4 * SUMS_PITCH + lane % 4 * 2;
    UNROLLED for (u32 i = 0; i < WARP_TOKENS / 16; i++) {
        if (i * 16 >= mine) break;
        UNROLLED for (u32 j = 0; j < WARP_ROWS / 8; j++) {
            const float(&c)[4] = sums[i][j].value;
            store(own + i * 16 * SUMS_PITCH + j * 8, Floats<2>{{c[0], c[1]}});
            store(own + (i * 16 + 8) * SUMS_PITCH + j * 8, Floats<2>{{c[2], c[3]}});
        }
    }
    __syncthreads();
    float *const target = job.out + u64{first_token} * job.rows + first_row;
    const float *factors = Weights::BF ? nullptr : reinterpret_cast<const float *>(to.rest) + first_token;
    finish(target, factors, job.rows, tokens, rows, job.adds, cut.tokens_log2, cut.rows_log2);
}

#define MATMUL(NAME, WEIGHTS)                                                         \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) matmul_##NAME(Matmul to) \
    {                                                                                 \
        matmul<WEIGHTS>(to);                                                          \
    }

MATMUL(f16, Halves<false>)
MATMUL(bf16, Halves<true>)
MATMUL(f32, Singles)
MATMUL(q4_0, Blocks<Q4_0>)
MATMUL(q4_1, Blocks<Q4_1>)
MATMUL(q5_0, Blocks<Q5_0>)
MATMUL(q5_1, Blocks<Q5_1>)
MATMUL(q8_0, Blocks<Q8_0>)
MATMUL(q2_k, Blocks<Q2_K>)
MATMUL(q3_k, Blocks<Q3_K>)
MATMUL(q4_k, Blocks<Q4_K>)
MATMUL(q5_k, Blocks<Q5_K>)
MATMUL(q6_k, Blocks<Q6_K>)
MATMUL(iq4_nl, Blocks<IQ4_NL>)
MATMUL(iq4_xs, Blocks<IQ4_XS>)
MATMUL(iq2_xxs, Blocks<IQ2_XXS>)
