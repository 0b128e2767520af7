// Cross-scale windowed attention, backward by tiles of keys: the gradients of keys and values, over the queries that
// can reach them. Rows of products are keys, columns queries.
#pragma once

#include "attention.h"

namespace hamlet::cuda {

template <class T, int D, bool TF32>
struct KeysBlock : TileMemory<T, D, Pass::keys> {
    using Own = TileMemory<T, D, Pass::keys>;
    using Product = Products<T, D, TF32>;
    static constexpr bool HELD = D <= 32;
    using Left = typename Product::template Left<HELD>;
    using typename Own::Plan;
    using Own::marks, Own::own_rows, Own::scratch, Own::staged, Own::summaries,
        Own::tile_rows;
    static constexpr int STEP = Plan::STEP, COUNT = STEP / 8;

    const CrossScale<T>& p;
    Tile tile;
    Size queries, keys;
    Axis down, across;
    bool exists[2];
    float key_y[2], key_x[2];
    float of_warp[4], of_block[4];  // the first key, negated, and the last: rows, then columns
    float most = -FAR;              // how far any query reaches
    Box box{{0, 0}, {0, 0}};        // the queries that can reach a key of the block
    float d_key[D / 8][4], d_value[D / 8][4];

    HAMLET_DEVICE explicit KeysBlock(const CrossScale<T>& parameters)
        : p(parameters),
          tile(p.key_height, p.key_width, p.heads),
          queries(valid_size(p.query_extent, tile.sample, p.query_height, p.query_width)),
          keys(valid_size(p.key_extent, tile.sample, p.key_height, p.key_width)),
          down(queries.height, keys.height),
          across(queries.width, keys.width),
          of_warp{-FAR, -FAR, -FAR, -FAR} {
        HAMLET_UNROLL
        for (int r = 0; r < 2; ++r) {
            const int y = tile.y_of(Tile::own_row(r)), x = tile.x_of(Tile::own_row(r));
            exists[r] = y < keys.height && x < keys.width;
            key_y[r] = exists[r] ? float(y) : FAR, key_x[r] = float(x);
            if (!exists[r]) continue;
            of_warp[0] = fmaxf(of_warp[0], -key_y[r]), of_warp[1] = fmaxf(of_warp[1], key_y[r]);
            of_warp[2] = fmaxf(of_warp[2], -key_x[r]), of_warp[3] = fmaxf(of_warp[3], key_x[r]);
        }
        largest_of_warp(of_warp);
        HAMLET_UNROLL
        for (int i = 0; i < 4; ++i) of_block[i] = of_warp[i];
        largest_of_block(of_block, scratch());
        // A tile wholly beyond the extent has no keys.
        if (of_block[1] >= 0) find_queries();
    }

    // The queries of an axis whose centres are within `reach` of the block's keys.
    HAMLET_DEVICE Span reaching(int axis, float reach) const {
        const Axis& own = axis ? across : down;
        const float ratio = float(own.queries) / float(own.keys);
        return covered((-of_block[axis * 2] - reach + 0.5f) * ratio - 0.5f - SLACK,
                       (of_block[axis * 2 + 1] + reach + 0.5f) * ratio - 0.5f + SLACK, own.queries);
    }

    // How far the centres of the queries of a span are from keys; negative where they overlap.
    HAMLET_DEVICE float gap(int axis, const Span& span, const float (&of)[4]) const {
        const Axis& own = axis ? across : down;
        return fmaxf(own.centre(float(span.first)) - of[axis * 2 + 1], -of[axis * 2] - own.centre(float(span.end - 1)));
    }

    HAMLET_DEVICE bool reaches(const Box& region, float reach, const float (&of)[4]) const {
        return fmaxf(gap(0, region.y, of), gap(1, region.x, of)) <= reach + p.softness + SLACK;
    }

    // Of the tiles within the greatest radius, only those count whose own largest radius reaches.
    HAMLET_DEVICE void find_queries() {
        const Span rows = reaching(0, p.max_radius + p.softness), columns = reaching(1, p.max_radius + p.softness);
        const int tiles_across = tiles_along(p.query_width), tiles = tiles_along(p.query_height) * tiles_across;
        const int top = rows.first / TILE, left = columns.first / TILE;
        const int down_count = rows.size() ? (rows.end - 1) / TILE - top + 1 : 0;
        const int across_count = columns.size() ? (columns.end - 1) / TILE - left + 1 : 0;
        // The largest radius, and of the tiles' pixels the first, negated, and the last.
        float found[5] = {-FAR, -FAR, -FAR, -FAR, -FAR};
        HAMLET_ROLLED
        for (int i = thread_index(); i < down_count * across_count; i += ATTENTION_THREADS) {
            const int row = top + i / across_count, column = left + i % across_count;
            const Box pixels{{row * TILE, row * TILE + TILE}, {column * TILE, column * TILE + TILE}};
            const float radius =
                p.largest.load((int64_t(tile.sample) * tiles + row * tiles_across + column) * p.heads + tile.head);
            if (!reaches(pixels, radius, of_block)) continue;
            found[0] = fmaxf(found[0], radius);
            found[1] = fmaxf(found[1], -float(pixels.y.first)), found[2] = fmaxf(found[2], float(pixels.y.end));
            found[3] = fmaxf(found[3], -float(pixels.x.first)), found[4] = fmaxf(found[4], float(pixels.x.end));
        }
        largest_of_warp(found);
        largest_of_block(found, scratch());
        most = found[0];
        box = {reaching(0, most + p.softness), reaching(1, most + p.softness)};
        if (most < 0) box = {{0, 0}, {0, 0}};
        else box = {{max(box.y.first, int(-found[1])), min(box.y.end, int(found[2]))},
                    {max(box.x.first, int(-found[3])), min(box.x.end, int(found[4]))}};
    }

    HAMLET_DEVICE void run() {
        stage_tile<D>(p.key, p.aligned, tile, keys.height, keys.width, tile_rows(0));
        stage_tile<D>(p.value, p.aligned, tile, keys.height, keys.width, tile_rows(1));
        commit_copies();
        wait_for_copies<0>();
        synchronise();
        const Left key(own_rows(0)), value(own_rows(1));
        // As in the pass by queries, again with care where something was not finite.
        HAMLET_ROLLED
        for (int careful = 0; careful < 2; ++careful) {
            visit(key, value, careful);
            if (careful || all_of_block(all_finite(d_key) && all_finite(d_value), scratch())) break;
        }
        HAMLET_UNROLL
        for (int n = 0; n < D / 8; ++n)
            HAMLET_UNROLL
            for (int i = 0; i < 4; ++i) d_key[n][i] *= p.scale;
        write_rows<D>(d_key, p.d_key, tile, p.key_height, p.key_width, own_rows(0));
        write_rows<D>(d_value, p.d_value, tile, p.key_height, p.key_width, own_rows(0));
    }

    HAMLET_DEVICE void visit(const Left& key, const Left& value, bool careful) {
        HAMLET_UNROLL
        for (int n = 0; n < D / 8; ++n)
            HAMLET_UNROLL
            for (int i = 0; i < 4; ++i) d_key[n][i] = d_value[n][i] = 0;
        const Steps<STEP> steps(box);
        auto stage = [&](int step, int into) {
            stage_step<D>(p.query, p.aligned, tile, steps, step, staged(into, 0));
            stage_step<D>(p.out, p.aligned, tile, steps, step, staged(into, 1));
            stage_summaries(steps, step, summaries(into));
        };
        for_each_step<Plan::STAGES_AHEAD>(steps.number, stage, [&](int step, int from) {
            const Box region = steps.region(step);
            const bool meets = reaches(region, most, of_warp);
            float weights[COUNT][4] = {}, d_logits[COUNT][4] = {};
            if (meets) {
                Product::template scores<HELD, COUNT>(key, staged(from, 0), weights);
                Product::template scores<HELD, COUNT>(value, staged(from, 1), d_logits);
                differentiate(steps, region, summaries(from), weights, d_logits);
            }
            if (careful) {
                synchronise();
                clean_rows<D, STEP>(staged(from, 0), marks());
                clean_rows<D, STEP>(staged(from, 1), marks() + STEP);
                synchronise();
            }
            if (!meets) return;
            Product::template add<COUNT>(weights, staged(from, 1), d_value);
            Product::template add<COUNT>(d_logits, staged(from, 0), d_key);
        });
    }

    HAMLET_DEVICE void stage_summaries(const Steps<STEP>& steps, int step, Shared<float> to) const {
        const int pixel = thread_index();
        if (pixel >= STEP) return;
        const Box region = steps.region(step);
        const int y = region.y.first + (pixel >> steps.shift), x = region.x.first + (pixel & ((1 << steps.shift) - 1));
        const int64_t at = ((int64_t(tile.sample) * p.query_height + y) * p.query_width + x) * p.heads + tile.head;
        copy_async(to, pixel * 4, p.summaries, at * 4, y < steps.box.y.end && x < steps.box.x.end);
    }

    // From logits and the weights' gradients to weights, gated, and the logits' gradients.
    HAMLET_DEVICE void differentiate(const Steps<STEP>& steps, const Box& region, Shared<float> of_queries,
                                     float (&weights)[COUNT][4], float (&d_logits)[COUNT][4]) const {
        const float scale = p.scale * LOG2_E, steepness = 1 / p.softness;
        HAMLET_UNROLL
        for (int n = 0; n < COUNT; ++n)
            HAMLET_UNROLL
            for (int i = 0; i < 2; ++i) {
                const int pixel = n * 8 + lane_index() % 4 * 2 + i;
                const int y = region.y.first + (pixel >> steps.shift);
                const int x = region.x.first + (pixel & ((1 << steps.shift) - 1));
                const bool within = y < steps.box.y.end && x < steps.box.x.end;
                const Summary own = of_queries.template load_pack<4>(pixel * 4);
                const float centre_y = down.centre(float(y)), centre_x = across.centre(float(x));
                HAMLET_UNROLL
                for (int r = 0; r < 2; ++r) {
                    const float margin = margin_of(own.element[REACH], centre_y, centre_x, key_y[r], key_x[r]);
                    const float weight = within ? ramp(margin, steepness) : 0;
                    float& logit = weights[n][r * 2 + i];
                    float& gradient = d_logits[n][r * 2 + i];
                    const float probability = weight * exp2_approximate(logit * scale - own.element[LOG_TOTAL]);
                    gradient = probability * (own.element[SHARE] * gradient - own.element[DELTA]);
                    logit = probability * own.element[SHARE];
                    if (!(weight > 0)) gradient = logit = 0;
                }
            }
    }
};

template <class T, int D, bool TF32>
HAMLET_KERNEL(ATTENTION_THREADS)
attention_keys(HAMLET_PARAMETERS CrossScale<T> parameters) {
    KeysBlock<T, D, TF32>(parameters).run();
}

}  // namespace hamlet::cuda
