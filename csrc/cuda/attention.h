// What the attention's kernels share: their parameters, the tile that a block of threads owns, and how rows of channels
// come into shared memory and leave it.
#pragma once

#include "attention_plan.h"
#include "window.h"

namespace hamlet::cuda {

// (B, H, W, heads, channels), the channels side by side.
template <class T>
struct Grid {
    Global<T> data;
    int64_t sample = 0, row = 0, column = 0, head = 0;

    HAMLET_DEVICE int64_t offset(int of_sample, int of_head, int y, int x) const {
        return of_sample * sample + of_head * head + y * row + x * column;
    }
};

template <class T>
struct CrossScale {
    Grid<T> query, key, value;
    Grid<T> out;                          // backward: its gradient
    Grid<T> d_query, d_key, d_value;      // contiguous, as `out` is in the forward
    Grid<float> radius, gate;             // without channels; may be absent
    Global<int64_t> query_extent, key_extent;  // (B, 2), may be absent
    Global<float> lse, grad_lse, d_radius, d_gate;  // (B, H, W, heads); of a backward the last three may be absent
    Global<float> summaries, largest;     // between the passes of the backward: see Summary
    float max_radius = 0, softness = 1, scale = 1;
    int query_height = 0, query_width = 0, key_height = 0, key_width = 0, heads = 1;
    bool aligned = false;                 // every row of channels begins at a multiple of COPY_BYTES
};

// What the pass by keys must know of a query: float32 (B, H, W, heads, 4) in memory.
using Summary = Pack<float, 4>;
enum { REACH, SHARE, LOG_TOTAL, DELTA };

struct Size {
    int height, width;
};

HAMLET_DEVICE Size valid_size(Global<int64_t> extent, int sample, int height, int width) {
    if (!extent) return {height, width};
    const int64_t rows = extent.load(sample * 2), columns = extent.load(sample * 2 + 1);
    return {int(max(min(rows, int64_t(height)), int64_t(1))), int(max(min(columns, int64_t(width)), int64_t(1)))};
}

// The tile of this block, heads changing fastest; of it this warp owns a patch, of which a thread has two pixels.
struct Tile {
    int head, number, sample, y, x;

    HAMLET_DEVICE Tile(int height, int width, int heads) {
        const int across = tiles_along(width), tiles = tiles_along(height) * across;
        int index = block_index();
        head = index % heads, index /= heads;
        number = index % tiles, sample = index / tiles;
        y = number / across * TILE, x = number % across * TILE;
    }
    HAMLET_DEVICE int y_of(int row) const { return y + row / ROWS / 2 * PATCH + row % ROWS / PATCH; }
    HAMLET_DEVICE int x_of(int row) const { return x + row / ROWS % 2 * PATCH + row % PATCH; }
    HAMLET_DEVICE static int own_row(int which) { return thread_index() / WARP * ROWS + lane_index() / 4 + which * 8; }
};

// Where a block has what; `which` is one of the two kinds of rows that it needs of its own tile and of a step.
template <class T, int D, Pass PASS>
struct TileMemory {
    using Plan = AttentionPlan<sizeof(T), D, PASS>;

    HAMLET_DEVICE static Shared<float> marks() { return shared_memory().template as<float>(Plan::MARKS); }
    HAMLET_DEVICE static Shared<float> scratch() { return shared_memory().template as<float>(Plan::SCRATCH); }
    HAMLET_DEVICE static Shared<T> tile_rows(int which) {
        return shared_memory().template as<T>(Plan::ROWS_BEGIN + which * Plan::TILE_BYTES);
    }
    HAMLET_DEVICE static Shared<T> own_rows(int which) {
        return tile_rows(which) + thread_index() / WARP * ROWS * PITCH<D>;
    }
    HAMLET_DEVICE static Shared<T> staged(int stage, int which) {
        const int begin = Plan::STAGES_BEGIN + stage * Plan::STAGE_BYTES;
        return shared_memory().template as<T>(begin + which * Plan::STEP_BYTES);
    }
    HAMLET_DEVICE static Shared<float> summaries(int stage) {
        const int begin = Plan::STAGES_BEGIN + stage * Plan::STAGE_BYTES;
        return shared_memory().template as<float>(begin + 2 * Plan::STEP_BYTES);
    }
};

struct Place {
    int y, x;
    bool exists;
};

// COUNT rows of channels to shared memory, zeros where there is none; place(row) tells which pixels they are of.
template <int D, int COUNT, class T, class Where>
HAMLET_DEVICE void stage_rows(const Grid<T>& from, bool aligned, int sample, int head, Shared<T> to,
                              const Where& place) {
    constexpr int SLOTS = D / COPIED<T>;
    HAMLET_UNROLL_BY(2)
    for (int i = thread_index(); i < COUNT * SLOTS; i += ATTENTION_THREADS) {
        const int row = i / SLOTS, first = i % SLOTS * COPIED<T>, target = row * PITCH<D> + first;
        const Place found = place(row);
        const int64_t source = from.offset(sample, head, found.y, found.x) + first;
        if (aligned) {
            copy_async(to, target, from.data, source, found.exists);
        } else {
            HAMLET_ROLLED
            for (int e = 0; e < COPIED<T>; ++e)
                to.store(target + e, found.exists ? from.data.load(source + e) : T{});
        }
    }
}

template <int D, class T>
HAMLET_DEVICE void stage_tile(const Grid<T>& from, bool aligned, const Tile& tile, int height, int width,
                              Shared<T> to) {
    stage_rows<D, TILE_ROWS>(from, aligned, tile.sample, tile.head, to, [&](int row) {
        const int y = tile.y_of(row), x = tile.x_of(row);
        return Place{y, x, y < height && x < width};
    });
}

// The pixels of a step.
template <int D, int COUNT, class T>
HAMLET_DEVICE void stage_step(const Grid<T>& from, bool aligned, const Tile& tile, const Steps<COUNT>& steps, int step,
                              Shared<T> to) {
    const Box region = steps.region(step);
    stage_rows<D, COUNT>(from, aligned, tile.sample, tile.head, to, [&](int row) {
        const int y = region.y.first + (row >> steps.shift);
        const int x = region.x.first + (row & ((1 << steps.shift) - 1));
        return Place{y, x, y < steps.box.y.end && x < steps.box.x.end};
    });
}

// Runs body(step, stage) for every step, those ahead being staged by stage(step, stage) meanwhile.
template <int STAGES_AHEAD, class Stage, class Body>
HAMLET_DEVICE void for_each_step(int steps, const Stage& stage, const Body& body) {
    constexpr int COUNT = STAGES_AHEAD + 1;
    HAMLET_ROLLED
    for (int step = 0; step < STAGES_AHEAD; ++step) {
        if (step < steps) stage(step, step);
        commit_copies();
    }
    int own = 0, next = STAGES_AHEAD;
    HAMLET_ROLLED
    for (int step = 0; step < steps; ++step) {
        wait_for_copies<STAGES_AHEAD - 1>();
        // What has landed is seen by all, and all are done with the stage that is filled next.
        synchronise();
        if (step + STAGES_AHEAD < steps) stage(step + STAGES_AHEAD, next);
        commit_copies();
        body(step, own);
        own = own + 1 == COUNT ? 0 : own + 1, next = next + 1 == COUNT ? 0 : next + 1;
    }
    wait_for_copies<0>();
    synchronise();
}

// Rows that may hold anything: what is not finite becomes 0, and marks[row] is 1 where there was such.
template <int D, int COUNT, class T>
HAMLET_DEVICE void clean_rows(Shared<T> rows, Shared<float> marks) {
    for (int row = thread_index(); row < COUNT; row += ATTENTION_THREADS) {
        bool clean = true;
        HAMLET_ROLLED
        for (int e = 0; e < D; ++e) {
            if (is_finite(number(rows.load(row * PITCH<D> + e)))) continue;
            rows.store(row * PITCH<D> + e, T{});
            clean = false;
        }
        marks.store(row, clean ? 0 : 1);
    }
}

template <int COUNT>
HAMLET_DEVICE bool all_finite(const float (&sums)[COUNT][4]) {
    bool finite = true;
    HAMLET_UNROLL
    for (int n = 0; n < COUNT; ++n)
        HAMLET_UNROLL
        for (int i = 0; i < 4; ++i) finite = finite && is_finite(sums[n][i]);
    return finite;
}

// Whether it holds for every thread of the block.
HAMLET_DEVICE bool all_of_block(bool holds, Shared<float> scratch) {
    float fails[1] = {any_of_warp(!holds) ? 1.f : 0.f};
    largest_of_block(fails, scratch);
    return fails[0] == 0;
}

// The warp's 16 rows of sums to a contiguous grid, by way of its rows of shared memory, which nothing else reads now.
template <int D, class T>
HAMLET_DEVICE void write_rows(const float (&sums)[D / 8][4], const Grid<T>& to, const Tile& tile, int height, int width,
                              Shared<T> rows) {
    const int lane = lane_index(), warp = thread_index() / WARP;
    synchronise_warp();
    HAMLET_UNROLL
    for (int n = 0; n < D / 8; ++n)
        HAMLET_UNROLL
        for (int r = 0; r < 2; ++r)
            rows.template store_pack<2>((lane / 4 + r * 8) * PITCH<D> + n * 8 + lane % 4 * 2,
                                        {{stored<T>(sums[n][r * 2]), stored<T>(sums[n][r * 2 + 1])}});
    synchronise_warp();
    constexpr int SLOTS = D / COPIED<T>;
    for (int i = lane; i < ROWS * SLOTS; i += WARP) {
        const int row = i / SLOTS, first = i % SLOTS * COPIED<T>;
        const int y = tile.y_of(warp * ROWS + row), x = tile.x_of(warp * ROWS + row);
        if (y < height && x < width)
            to.data.template store_pack<COPIED<T>>(to.offset(tile.sample, tile.head, y, x) + first,
                                                   rows.template load_pack<COPIED<T>>(row * PITCH<D> + first));
    }
}

}  // namespace hamlet::cuda
