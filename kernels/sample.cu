// Draws one token for each row of logits, by the rules of granule-llama's sampler: top-k, top-p, min-p, temperature, draw. What
// changes from step to step, the random numbers too, is read from device memory, so a captured graph draws anew at every launch.
//
// A token's weight at temperature t is exp((logit - largest) / t), as a whole number of 2^-44 of the likeliest's. Sums of these are
// exact and in any order the same, so every choice below is a selection: of all tokens in an order, the first with which a sum
// passes a number. Nothing is sorted. Tokens lie in the order of their keys, the largest first: by logit, of equals the one with
// the lower id. Where neither top-k nor top-p leaves any out they are drawn in the order of their ids, as on the host.
//
//   sample_penalize   divides logits of tokens that are listed (multiplies those not above 0), in place; may be left out
//   sample_begin      the best token of each slice of the vocabulary, and how many there are
//   sample_weigh      how many tokens there are at each distance from the best, and their weights; or those of each slice
//   sample_gather     lists the tokens that are near enough to be drawn
//   sample_draw       the selections
//
// Without `draws`, `sample_begin` and `sample_draw` alone give the likeliest tokens.
//
//   logits   rows x n_vocab, f32, dense; a multiple of 16. Negative infinity rules a token out
//   draws    rows, or null
//   boards   rows, scratch; one launch leaves there what the next one reads
//   ids      rows. ~0 where there is nothing to draw from
//   values   rows: the token's logit; of ~0 NaN or infinity where a logit is that, negative infinity where all are
// Grid: x over slices, y over rows; any size does all of the work, sample_draw's x is 1. Block: 256 threads.
#include "sample.cuh"

// logits   rows x n_vocab, changed in place
// ids      rows x most: of each row the first `penalized` of its draw, no two of them alike; others than tokens change nothing
extern "C" __global__ void __launch_bounds__(THREADS)
    sample_penalize(float *logits, const Draw *draws, const u32 *ids, u64 rows, u64 n_vocab, u64 most)
{
    for (u64 row = blockIdx.y; row < rows; row += gridDim.y) {
        const float penalty = draws[row].penalty;
        const u64 listed = draws[row].penalized < most ? draws[row].penalized : most;
        for (u64 i = u64{blockIdx.x} * THREADS + threadIdx.x; i < listed; i += u64{gridDim.x} * THREADS) {
            const u32 id = ids[row * most + i];
            if (id >= n_vocab) continue;
            float &logit = logits[row * n_vocab + id];
            if (magnitude_of(logit) < float_of(0x7f800000)) {
                const float scaled = logit <= 0.0f ? logit * penalty : logit / penalty;
                logit = scaled < float_of(0x7f7fffff) ? scaled : float_of(0x7f7fffff); // a penalty far below 1
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) sample_begin(const Sample to)
{
    __shared__ u64 keys[WARPS];
    __shared__ u32 numbers[WARPS];
    for (u64 row = blockIdx.y; row < to.rows; row += gridDim.y) {
        Board &board = to.boards[row];
        for (u32 slice = blockIdx.x; slice < to.slices; slice += gridDim.x) {
            u64 best = 0;
            u32 candidates = 0;
            for_slice(to, row, slice, [&](u32, u32 token, float logit) {
                const u64 key = key_of(logit, token);
                best = larger_key(best, key);
                candidates += key >> 32 > RULED_OUT ? 1 : 0;
            });
            best = of_block(best, keys, larger_key);
            candidates = sum_of_block(candidates, numbers);
            if (threadIdx.x == 0) {
                board.best[slice] = best;
                board.candidates[slice] = candidates;
                if (slice == 0) board.listed = board.overflows = 0;
            }
            for (u32 bin = slice * THREADS + threadIdx.x; bin < BINS; bin += to.slices * THREADS) {
                board.counts[bin] = 0;
                board.weights[bin] = 0;
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) sample_weigh(const Sample to)
{
    __shared__ Room room;
    __shared__ u32 counts[BINS];
    __shared__ u64 weights[BINS];
    __shared__ float window[SLICE];
    for (u64 row = blockIdx.y; row < to.rows; row += gridDim.y) {
        const Plan plan = plan_of(to, row, room);
        if (!plan.draws) continue;
        Board &board = to.boards[row];
        if (!plan.cuts && !plan.shares) {
            for (u32 slice = blockIdx.x; slice < to.slices; slice += gridDim.x) {
                u64 sum = 0;
                for_slice_one_by_one(to, row, slice, window, [&](u32, float logit) {
                    const float distance = plan.distance(logit);
                    if (distance <= plan.reach && plan.bin(distance) < BINS) sum += weight_of(distance, plan.temp);
                });
                sum = sum_of_block(sum, room.wide);
                if (threadIdx.x == 0) board.slice_sums[slice] = sum;
            }
            continue;
        }
        for (u32 bin = threadIdx.x; bin < BINS; bin += THREADS) {
            counts[bin] = 0;
            weights[bin] = 0;
        }
        __syncthreads();
        for (u32 slice = blockIdx.x; slice < to.slices; slice += gridDim.x) {
            for_slice_one_by_one(to, row, slice, window, [&](u32, float logit) {
                const float distance = plan.distance(logit);
                const u32 bin = plan.bin(distance);
                if (bin >= BINS) return;
                atomicAdd(&counts[bin], 1u);
                if (plan.shares) atomicAdd(&weights[bin], weight_of(distance, 1.0));
            });
        }
        __syncthreads();
        for (u32 bin = threadIdx.x; bin < BINS; bin += THREADS) {
            if (counts[bin] == 0) continue;
            atomicAdd(&board.counts[bin], counts[bin]);
            if (plan.shares) atomicAdd(&board.weights[bin], weights[bin]);
        }
        __syncthreads(); // the next row begins with zeros
    }
}

// The first class with which the sum of `of` over the classes passes `target`, or the last one, for all threads. `total` becomes
// the sum of all.
template <typename T> __device__ inline u32 bin_of_sum(const T *of, u64 target, u64 &total, Room &room)
{
    constexpr u32 EACH = BINS / THREADS;
    u64 own[EACH], sum = 0;
    UNROLLED for (u32 i = 0; i < EACH; i++) {
        own[i] = of[threadIdx.x * EACH + i];
        sum += own[i];
    }
    const u64 up_to = sum_up_to(sum, room.wide);
    if (threadIdx.x == 0) room.found = BINS - 1;
    if (threadIdx.x == THREADS - 1) room.before = up_to;
    __syncthreads();
    u64 passed = up_to - sum;
    if (passed <= target && target < up_to) {
        u32 bin = threadIdx.x * EACH;
        UNROLLED for (u32 i = 0; i < EACH; i++) {
            passed += own[i];
            if (passed <= target) bin++;
        }
        room.found = bin;
    }
    __syncthreads();
    const u32 found = room.found;
    total = room.before;
    __syncthreads();
    return found;
}

extern "C" __global__ void __launch_bounds__(THREADS) sample_gather(const Sample to)
{
    __shared__ Room room;
    __shared__ float window[SLICE];
    for (u64 row = blockIdx.y; row < to.rows; row += gridDim.y) {
        const Plan plan = plan_of(to, row, room);
        if (!plan.draws || (!plan.cuts && !plan.shares)) continue;
        Board &board = to.boards[row];
        const Draw &draw = to.draws[row];
        // The last class with a token that can be drawn, or counts for what can be. Rounding takes a distance to the next class
        // at most.
        const double of_reach = plan.reach * plan.bins + 1.0;
        u32 last = of_reach < BINS ? static_cast<u32>(of_reach) : BINS - 1;
        u64 total;
        if (plan.cuts) {
            const u32 of_count = bin_of_sum(board.counts, u64{draw.top_k} - 1, total, room);
            // Top-p wants the weights of all that top-k leaves.
            last = plan.shares || of_count < last ? of_count : last;
        } else {
            bin_of_sum(board.weights, ~u64{0}, total, room);
            if (blockIdx.x == 0 && threadIdx.x == 0) board.total = total;
            const u32 of_share = bin_of_sum(board.weights, share_of(draw.top_p, total) - 1, total, room);
            last = of_share < last ? of_share : last;
        }
        u32 near = 0;
        for (u32 bin = threadIdx.x; bin <= last; bin += THREADS) near += board.counts[bin];
        if (sum_of_block(near, room.narrow) > LIST) {
            if (blockIdx.x == 0 && threadIdx.x == 0) board.overflows = 1;
            continue;
        }
        for (u32 slice = blockIdx.x; slice < to.slices; slice += gridDim.x) {
            for_slice_one_by_one(to, row, slice, window, [&](u32 token, float logit) {
                if (plan.bin(plan.distance(logit)) <= last) {
                    board.list[atomicAdd(&board.listed, 1u)] = key_of(logit, token);
                }
            });
        }
    }
}

// What is added up: how many tokens there are, or their weights at a temperature, of those within reach.
struct Measure {
    bool counts;
    double temp, reach;
};

// A row's tokens, a slice of them or all that are listed at a time in shared memory, where each thread reads what it has written
// itself; and the least key of those that are left.
struct Kept {
    const Sample &to;
    const Plan &plan;
    u64 *window; // SLICE keys, 0 where there is no token
    u64 row;
    u64 least;
    bool listed; // all of them are in the window, else a slice is put there at a time
    u32 rounds;  // tokens of a window for each thread, at most

    __device__ Kept(const Sample &to, u64 row, const Plan &plan, u64 *window)
        : to(to), plan(plan), window(window), row(row), least(1), listed(to.boards[row].overflows == 0), rounds(EACH)
    {
        const Board &board = to.boards[row];
        if (!listed) return;
        static_assert(LIST == SLICE);
        rounds = (board.listed + THREADS - 1) / THREADS;
        ROLLED for (u32 i = threadIdx.x; i < rounds * THREADS; i += THREADS) window[i] = i < board.listed ? board.list[i] : 0;
    }

    // Calls `visit(key)` for this thread's tokens that are left.
    template <typename Visit> __device__ void for_each(Visit visit) const
    {
        for (u32 slice = 0; slice < (listed ? 1 : to.slices); slice++) {
            if (!listed) {
                for_slice(to, row, slice, [&](u32 i, u32 token, float logit) {
                    const u64 key = key_of(logit, token);
                    window[i * THREADS + threadIdx.x] = key >> 32 > RULED_OUT ? key : 0;
                });
            }
            ROLLED for (u32 i = 0; i < rounds; i++) {
                const u64 key = window[i * THREADS + threadIdx.x];
                if (key >= least) visit(key);
            }
        }
    }

    __device__ u64 measure(const Measure &by, u64 key) const
    {
        if (by.counts) return 1;
        const float distance = plan.distance(logit_of(key));
        return distance <= by.reach ? weight_of(distance, by.temp) : 0;
    }

    __device__ u64 sum(const Measure &by, Room &room) const
    {
        u64 sum = 0;
        for_each([&](u64 key) { sum += measure(by, key); });
        return sum_of_block(sum, room.wide);
    }

    // The first token, the largest keys first, with which the sum passes `target`: its key, found digit by digit. 0 where all of
    // them together do not.
    __device__ u64 select(const Measure &by, u64 target, Room &room) const
    {
        // Ids are below 2^20, so of all keys this digit is the same.
        u64 found = 0xff000000, known = 0xff000000;
        for (u32 digit = 0; digit < 7; digit++) {
            const u32 shift = digit < 4 ? 56 - 8 * digit : 48 - 8 * digit;
            room.bins[threadIdx.x] = 0;
            if (threadIdx.x == 0) {
                room.found = THREADS;
                room.before = 0;
            }
            __syncthreads();
            for_each([&](u64 key) {
                if ((key & known) != found) return;
                const u64 amount = measure(by, key);
                if (amount != 0) atomicAdd(&room.bins[key >> shift & 0xff], amount);
            });
            __syncthreads();
            const u32 bin = THREADS - 1 - threadIdx.x;
            const u64 own = room.bins[bin], up_to = sum_up_to(own, room.wide);
            if (up_to - own <= target && target < up_to) {
                room.found = bin;
                room.before = up_to - own;
            }
            __syncthreads();
            const u32 of_digit = room.found;
            const u64 before = room.before;
            __syncthreads();
            if (of_digit == THREADS) return 0; // the same for all threads
            target -= before;
            found |= u64{of_digit} << shift;
            known |= u64{0xff} << shift;
        }
        return found;
    }
};

// The token that is drawn where tokens have the order of their ids.
__device__ inline u32 draw_by_id(const Sample &to, u64 row, const Plan &plan, Room &room)
{
    const Draw &draw = to.draws[row];
    const u64 own = threadIdx.x < to.slices ? to.boards[row].slice_sums[threadIdx.x] : 0;
    const u64 up_to = sum_up_to(own, room.wide), total = sum_of_block(own, room.wide);
    u64 place = place_of(draw.random, total);
    if (up_to - own <= place && place < up_to) {
        room.found = threadIdx.x;
        room.before = up_to - own;
    }
    __syncthreads();
    const u32 first = room.found * SLICE + threadIdx.x * EACH;
    place -= room.before;
    const float *logits = to.logits + row * to.n_vocab;
    const auto weight = [&](u32 token) {
        const float distance = token < to.n_vocab ? plan.distance(logits[token]) : float_of(0x7f800000);
        return distance <= plan.reach && plan.bin(distance) < BINS ? weight_of(distance, plan.temp) : u64{0};
    };
    u64 sum = 0;
    ROLLED for (u32 i = 0; i < EACH; i++) sum += weight(first + i);
    u64 passed = sum_up_to(sum, room.wide) - sum; // its barriers lie between reading `found` and writing it
    if (passed <= place && place < passed + sum) {
        u32 token = first;
        ROLLED for (u32 i = 0; i < EACH; i++) {
            passed += weight(first + i);
            if (passed <= place) token++;
        }
        room.found = token;
    }
    __syncthreads();
    const u32 token = room.found;
    __syncthreads();
    return token;
}

// The token that is drawn where the likelier come first.
__device__ inline u32 draw_by_key(const Sample &to, u64 row, const Plan &plan, u64 *window, Room &room)
{
    const Draw &draw = to.draws[row];
    const double anywhere = double_of(0x7ff0000000000000);
    Kept kept(to, row, plan, window);
    // Top-k, top-p, the draw: each sees what the one before it left.
    for (u32 step = 0; step < 3; step++) {
        if ((step == 0 && !plan.cuts) || (step == 1 && !plan.shares)) continue;
        Measure by{step == 0, step == 1 ? 1.0 : plan.temp, step == 1 ? anywhere : plan.reach};
        u64 target = u64{draw.top_k} - 1;
        if (step != 0) {
            const u64 total = step == 1 && !plan.cuts ? to.boards[row].total : kept.sum(by, room);
            target = step == 1 ? share_of(draw.top_p, total) - 1 : place_of(draw.random, total);
        }
        const u64 key = kept.select(by, target, room);
        if (key != 0) kept.least = key;
    }
    return token_of(kept.least);
}

extern "C" __global__ void __launch_bounds__(THREADS) sample_draw(const Sample to)
{
    __shared__ Room room;
    __shared__ u64 window[SLICE];
    for (u64 row = blockIdx.y; row < to.rows; row += gridDim.y) {
        const Plan plan = plan_of(to, row, room);
        u32 token = plan.top;
        if (plan.draws) {
            token = plan.cuts || plan.shares ? draw_by_key(to, row, plan, window, room) : draw_by_id(to, row, plan, room);
        }
        if (threadIdx.x == 0) {
            const u32 ordered = static_cast<u32>(plan.key >> 32);
            const bool none = ordered <= RULED_OUT || ordered >= INFINITE;
            to.ids[row] = none ? ~0u : token;
            to.values[row] = none ? plan.largest : to.logits[row * to.n_vocab + token];
        }
    }
}
