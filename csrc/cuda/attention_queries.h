// Cross-scale windowed attention, backward by tiles of queries: the gradients of queries, radii and gates.
//
// A query's delta, the sum of P dO.v, must be known before any gradient, so its keys are visited twice. What the pass
// by keys needs of a query is left behind.
#pragma once

#include "query_windows.h"

namespace hamlet::cuda {

template <class T, int D, bool TF32>
struct QueriesBlock : TileMemory<T, D, Pass::queries> {
    using Own = TileMemory<T, D, Pass::queries>;
    using Product = Products<T, D, TF32>;
    // The largest heads leave no registers for both left sides beside their sums.
    static constexpr bool HELD = D <= 64;
    using Left = typename Product::template Left<HELD>;
    using typename Own::Plan;
    using Own::marks, Own::own_rows, Own::scratch, Own::staged, Own::tile_rows;
    static constexpr int STEP = Plan::STEP, COUNT = STEP / 8;

    const CrossScale<T>& p;
    Tile tile;
    QueryWindows windows;
    float log_total[2], delta[2], slope[2], sums[D / 8][4];

    HAMLET_DEVICE explicit QueriesBlock(const CrossScale<T>& parameters)
        : p(parameters), tile(p.query_height, p.query_width, p.heads), windows(p, tile, scratch()) {}

    HAMLET_DEVICE void run() {
        const Size valid = valid_size(p.query_extent, tile.sample, p.query_height, p.query_width);
        stage_tile<D>(p.query, p.aligned, tile, valid.height, valid.width, tile_rows(0));
        stage_tile<D>(p.out, p.aligned, tile, valid.height, valid.width, tile_rows(1));
        commit_copies();
        wait_for_copies<0>();
        synchronise();
        const Left query(own_rows(0)), d_out(own_rows(1));
        HAMLET_UNROLL
        for (int r = 0; r < 2; ++r) {
            log_total[r] = windows.in_grid[r] ? LOG2_E * p.lse.load(windows.index(p, tile, r)) : 0;
            if (log_total[r] == -INFINITY) log_total[r] = 0;
        }
        // First delta, then gradients; these again, with care, where something was not finite.
        HAMLET_ROLLED
        for (int turn = 0; turn < 3; ++turn) {
            visit(query, d_out, turn);
            if (turn == 0) leave_summaries();
            if (turn == 1 && all_of_block(all_finite(sums), scratch())) break;
        }
        finish();
    }

    HAMLET_DEVICE void visit(const Left& query, const Left& d_out, int turn) {
        const bool careful = turn == 2;
        HAMLET_UNROLL
        for (int r = 0; r < 2; ++r) {
            slope[r] = 0;
            if (turn == 0) delta[r] = 0;
        }
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
            const bool meets = windows.some.meets(region);
            float logits[COUNT][4] = {}, d_weights[COUNT][4] = {};
            if (meets) {
                float margin[COUNT][4];
                Product::template scores<HELD, COUNT>(query, staged(from, 0), logits);
                Product::template scores<HELD, COUNT>(d_out, staged(from, 1), d_weights);
                windows.margins(steps, region, margin);
                if (turn == 0) add_delta(logits, d_weights, margin);
                else differentiate(logits, d_weights, margin);
            }
            if (careful) {
                synchronise();
                clean_rows<D, STEP>(staged(from, 0), marks());
                synchronise();
            }
            if (meets && turn > 0) Product::template add<COUNT>(logits, staged(from, 0), sums);
        });
    }

    HAMLET_DEVICE void add_delta(const float (&logits)[COUNT][4], const float (&d_weights)[COUNT][4],
                                 const float (&margin)[COUNT][4]) {
        const float scale = p.scale * LOG2_E, steepness = 1 / p.softness;
        HAMLET_UNROLL
        for (int n = 0; n < COUNT; ++n)
            HAMLET_UNROLL
            for (int i = 0; i < 4; ++i) {
                const float weight = ramp(margin[n][i], steepness);
                const float probability = weight * exp2_approximate(logits[n][i] * scale - log_total[i / 2]);
                if (weight > 0) delta[i / 2] += probability * d_weights[n][i];
            }
    }

    // From logits to their gradients.
    HAMLET_DEVICE void differentiate(float (&logits)[COUNT][4], const float (&d_weights)[COUNT][4],
                                     const float (&margin)[COUNT][4]) {
        const float scale = p.scale * LOG2_E, steepness = 1 / p.softness;
        HAMLET_UNROLL
        for (int n = 0; n < COUNT; ++n)
            HAMLET_UNROLL
            for (int i = 0; i < 4; ++i) {
                const int r = i / 2;
                const float weight = ramp(margin[n][i], steepness);
                float gradient = exp2_approximate(logits[n][i] * scale - log_total[r]);
                gradient *= windows.share[r] * d_weights[n][i] - delta[r];
                if (!(weight > 0)) gradient = 0;
                if (margin[n][i] < 0) slope[r] += gradient;
                logits[n][i] = weight * gradient;
            }
    }

    HAMLET_DEVICE void leave_summaries() {
        float largest[1] = {-FAR};
        HAMLET_UNROLL
        for (int r = 0; r < 2; ++r) {
            const float own = sum_of_row(delta[r]);
            const int64_t at = windows.index(p, tile, r);
            if (windows.speaks(r) && p.d_gate) p.d_gate.store(at, own);
            delta[r] = windows.share[r] * own;
            if (windows.exists[r] && p.grad_lse) delta[r] -= p.grad_lse.load(at);
            if (windows.speaks(r))
                p.summaries.template store_pack<4>(
                    at * 4, Summary{{windows.reach[r], windows.share[r], log_total[r], delta[r]}});
            largest[0] = fmaxf(largest[0], windows.reach[r]);
        }
        largest_of_warp(largest);
        largest_of_block(largest, scratch());
        if (thread_index() == 0) {
            const int tiles = tiles_along(p.query_height) * tiles_along(p.query_width);
            p.largest.store((int64_t(tile.sample) * tiles + tile.number) * p.heads + tile.head, largest[0]);
        }
    }

    HAMLET_DEVICE void finish() {
        HAMLET_UNROLL
        for (int r = 0; r < 2; ++r) {
            const float all = sum_of_row(slope[r]);
            const bool passes = windows.given[r] >= 0.5f && windows.given[r] <= p.max_radius;
            if (windows.speaks(r) && p.d_radius)
                p.d_radius.store(windows.index(p, tile, r), passes ? all / p.softness : 0);
        }
        HAMLET_UNROLL
        for (int n = 0; n < D / 8; ++n)
            HAMLET_UNROLL
            for (int i = 0; i < 4; ++i) sums[n][i] *= p.scale;
        write_rows<D>(sums, p.d_query, tile, p.query_height, p.query_width, own_rows(0));
    }
};

template <class T, int D, bool TF32>
HAMLET_KERNEL(ATTENTION_THREADS)
attention_queries(HAMLET_PARAMETERS CrossScale<T> parameters) {
    QueriesBlock<T, D, TF32>(parameters).run();
}

}  // namespace hamlet::cuda
