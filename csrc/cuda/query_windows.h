// The windows of a tile of queries: what each query, each warp and the block can reach.
#pragma once

#include "attention.h"

namespace hamlet::cuda {

// A number a lane of each row, summed over the four lanes that share the row.
HAMLET_DEVICE float sum_of_row(float number) {
    number += shuffle_xor(number, 1);
    return number + shuffle_xor(number, 2);
}

// The windows of a thread's two queries, and what its warp and its block can reach.
struct QueryWindows {
    int y[2], x[2];
    bool in_grid[2], exists[2];
    float centre_y[2], centre_x[2];
    float given[2], reach[2], share[2];  // the radius as given, clamped, and the gate
    Box some, every, block;              // keys that some query of the warp, every one, and some of the block reach

    template <class T>
    HAMLET_DEVICE QueryWindows(const CrossScale<T>& p, const Tile& tile, Shared<float> scratch) {
        const Size queries = valid_size(p.query_extent, tile.sample, p.query_height, p.query_width);
        const Size keys = valid_size(p.key_extent, tile.sample, p.key_height, p.key_width);
        const Axis down(queries.height, keys.height), across(queries.width, keys.width);
        // Negated where the least is wanted: top, bottom, left, right that are reached, and the same fully reached.
        float reached[4] = {-FAR, -FAR, -FAR, -FAR}, full[4] = {-FAR, -FAR, -FAR, -FAR};
        HAMLET_UNROLL
        for (int r = 0; r < 2; ++r) {
            y[r] = tile.y_of(Tile::own_row(r)), x[r] = tile.x_of(Tile::own_row(r));
            in_grid[r] = y[r] < p.query_height && x[r] < p.query_width;
            exists[r] = y[r] < queries.height && x[r] < queries.width;
            centre_y[r] = down.centre(float(y[r])), centre_x[r] = across.centre(float(x[r]));
            given[r] = p.max_radius, share[r] = 1, reach[r] = -FAR;
            if (!exists[r]) continue;
            if (p.radius.data) given[r] = p.radius.data.load(p.radius.offset(tile.sample, tile.head, y[r], x[r]));
            if (p.gate.data) share[r] = p.gate.data.load(p.gate.offset(tile.sample, tile.head, y[r], x[r]));
            reach[r] = fminf(fmaxf(given[r], 0.5f), p.max_radius);
            // A radius that is no number has no window; what comes of it must be no number either.
            if (given[r] != given[r]) share[r] = given[r];
            const float most = reach[r] + p.softness * SHORT_OF_THE_END, sure = reach[r] - SLACK;
            const float centre[2] = {centre_y[r], centre_x[r]};
            HAMLET_UNROLL
            for (int axis = 0; axis < 2; ++axis) {
                reached[axis * 2] = fmaxf(reached[axis * 2], most - centre[axis]);
                reached[axis * 2 + 1] = fmaxf(reached[axis * 2 + 1], most + centre[axis]);
                full[axis * 2] = fmaxf(full[axis * 2], centre[axis] - sure);
                full[axis * 2 + 1] = fmaxf(full[axis * 2 + 1], -(centre[axis] + sure));
            }
        }
        largest_of_warp(reached);
        largest_of_warp(full);
        some = box_of(reached, keys);
        every = {covered(full[0], -full[1], keys.height), covered(full[2], -full[3], keys.width)};
        largest_of_block(reached, scratch);
        block = box_of(reached, keys);
    }

    HAMLET_DEVICE static Box box_of(const float (&reached)[4], Size keys) {
        return {covered(-reached[0], reached[1], keys.height), covered(-reached[2], reached[3], keys.width)};
    }

    // Radius less distance of this thread's pairs in a step.
    template <int COUNT>
    HAMLET_DEVICE void margins(const Steps<COUNT>& steps, const Box& region, float (&margin)[COUNT / 8][4]) const {
        const bool inside = every.holds(region);
        HAMLET_UNROLL
        for (int n = 0; n < COUNT / 8; ++n)
            HAMLET_UNROLL
            for (int i = 0; i < 2; ++i) {
                const int pixel = n * 8 + lane_index() % 4 * 2 + i;
                const int key_y = region.y.first + (pixel >> steps.shift);
                const int key_x = region.x.first + (pixel & ((1 << steps.shift) - 1));
                const bool within = key_y < steps.box.y.end && key_x < steps.box.x.end;
                HAMLET_UNROLL
                for (int r = 0; r < 2; ++r) {
                    float& own = margin[n][r * 2 + i];
                    if (inside) own = exists[r] ? 0 : -FAR;
                    else if (within) own = margin_of(reach[r], centre_y[r], centre_x[r], float(key_y), float(key_x));
                    else own = -FAR;
                }
            }
    }

    template <class T>
    HAMLET_DEVICE int64_t index(const CrossScale<T>& p, const Tile& tile, int r) const {
        return ((int64_t(tile.sample) * p.query_height + y[r]) * p.query_width + x[r]) * p.heads + tile.head;
    }
    // One of the four lanes that share a row speaks for it.
    HAMLET_DEVICE bool speaks(int r) const { return lane_index() % 4 == 0 && in_grid[r]; }
};

}  // namespace hamlet::cuda
