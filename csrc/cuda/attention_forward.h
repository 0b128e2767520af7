// Cross-scale windowed attention, forward: a tile of queries against the keys that it can reach.
#pragma once

#include "query_windows.h"

namespace hamlet::cuda {

template <class T, int D, bool TF32>
struct ForwardBlock : TileMemory<T, D, Pass::forward> {
    using Own = TileMemory<T, D, Pass::forward>;
    using Product = Products<T, D, TF32>;
    using Left = typename Product::template Left<true>;
    using typename Own::Plan;
    using Own::marks, Own::own_rows, Own::scratch, Own::staged, Own::tile_rows;
    static constexpr int STEP = Plan::STEP, COUNT = STEP / 8;

    const CrossScale<T>& p;
    Tile tile;
    QueryWindows windows;
    float largest[2], total[2], spoilt[2], sums[D / 8][4];

    HAMLET_DEVICE explicit ForwardBlock(const CrossScale<T>& parameters)
        : p(parameters), tile(p.query_height, p.query_width, p.heads), windows(p, tile, scratch()) {}

    HAMLET_DEVICE void run() {
        const Size valid = valid_size(p.query_extent, tile.sample, p.query_height, p.query_width);
        stage_tile<D>(p.query, p.aligned, tile, valid.height, valid.width, tile_rows(0));
        commit_copies();
        wait_for_copies<0>();
        synchronise();
        const Left left(own_rows(0));
        // A value that is not finite spoils whole tiles, through 0 * NaN. Only then is it all done again, with care.
        HAMLET_ROLLED
        for (int careful = 0; careful < 2; ++careful) {
            attend(left, careful);
            if (careful || all_of_block(all_finite(sums), scratch())) break;
        }
        finish();
    }

    HAMLET_DEVICE void attend(const Left& left, bool careful) {
        HAMLET_UNROLL
        for (int r = 0; r < 2; ++r) largest[r] = -INFINITY, total[r] = spoilt[r] = 0;
        HAMLET_UNROLL
        for (int n = 0; n < D / 8; ++n)
            HAMLET_UNROLL
            for (int i = 0; i < 4; ++i) sums[n][i] = 0;
        const Steps<STEP> steps(windows.block);
        auto stage = [&](int step, int into) {
            stage_step<D>(p.key, p.aligned, tile, steps, step, staged(into, 0));
            stage_step<D>(p.value, p.aligned, tile, steps, step, staged(into, 1));
        };
        for_each_step<Plan::STAGES_AHEAD>(steps.number, stage, [&](int step, int from) {
            const Box region = steps.region(step);
            if (careful) {
                clean_rows<D, STEP>(staged(from, 1), marks());
                synchronise();
            }
            if (!windows.some.meets(region)) return;
            float weights[COUNT][4] = {}, margin[COUNT][4];
            Product::template scores<true, COUNT>(left, staged(from, 0), weights);
            windows.margins(steps, region, margin);
            soften(weights, margin);
            if (careful) mark(margin);
            Product::template add<COUNT>(weights, staged(from, 1), sums);
        });
    }

    // From products to weights, relative to the largest logit so far.
    HAMLET_DEVICE void soften(float (&weights)[COUNT][4], const float (&margin)[COUNT][4]) {
        const float scale = p.scale * LOG2_E, slope = 1 / p.softness;
        HAMLET_UNROLL
        for (int r = 0; r < 2; ++r) {
            float most = largest[r];
            HAMLET_UNROLL
            for (int n = 0; n < COUNT; ++n)
                HAMLET_UNROLL
                for (int i = r * 2; i < r * 2 + 2; ++i) {
                    weights[n][i] = ramp(margin[n][i], slope) > 0 ? weights[n][i] * scale : -INFINITY;
                    most = fmaxf(most, weights[n][i]);
                }
            most = fmaxf(most, shuffle_xor(most, 1));
            most = fmaxf(most, shuffle_xor(most, 2));
            const float offset = most == -INFINITY ? 0 : most, kept = exp2_approximate(largest[r] - offset);
            largest[r] = most;
            total[r] *= kept;
            HAMLET_UNROLL
            for (int n = 0; n < D / 8; ++n) sums[n][r * 2] *= kept, sums[n][r * 2 + 1] *= kept;
            HAMLET_UNROLL
            for (int n = 0; n < COUNT; ++n)
                HAMLET_UNROLL
                for (int i = r * 2; i < r * 2 + 2; ++i) {
                    weights[n][i] = ramp(margin[n][i], slope) * exp2_approximate(weights[n][i] - offset);
                    total[r] += weights[n][i];
                }
        }
    }

    // The queries that reach a value that was cleaned.
    HAMLET_DEVICE void mark(const float (&margin)[COUNT][4]) {
        HAMLET_UNROLL
        for (int n = 0; n < COUNT; ++n)
            HAMLET_UNROLL
            for (int i = 0; i < 4; ++i)
                if (ramp(margin[n][i], 1 / p.softness) > 0)
                    spoilt[i / 2] += marks().load(n * 8 + lane_index() % 4 * 2 + i % 2);
    }

    HAMLET_DEVICE void finish() {
        HAMLET_UNROLL
        for (int r = 0; r < 2; ++r) {
            const float all = sum_of_row(total[r]);
            const bool empty = all == 0 || !windows.exists[r];
            float share = empty ? 0 : windows.share[r] / all;
            if (sum_of_row(spoilt[r]) > 0) share = NAN;
            HAMLET_UNROLL
            for (int n = 0; n < D / 8; ++n)
                HAMLET_UNROLL
                for (int i = r * 2; i < r * 2 + 2; ++i) sums[n][i] = empty && share == 0 ? 0 : sums[n][i] * share;
            if (windows.speaks(r))
                p.lse.store(windows.index(p, tile, r), empty ? -INFINITY : largest[r] * LOG_2 + logf(all));
        }
        write_rows<D>(sums, p.out, tile, p.query_height, p.query_width, own_rows(0));
    }
};

template <class T, int D, bool TF32>
HAMLET_KERNEL(ATTENTION_THREADS)
attention_forward(HAMLET_PARAMETERS CrossScale<T> parameters) {
    ForwardBlock<T, D, TF32>(parameters).run();
}

}  // namespace hamlet::cuda
