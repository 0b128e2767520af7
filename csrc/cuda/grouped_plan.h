// How a grouped convolution is cut into tiles and shared memory: arithmetic alone, for the host.
#pragma once

#include "depthwise_plan.h"

namespace hamlet::cuda {

constexpr int GROUPED_THREADS = 128, GROUPED_WARPS = GROUPED_THREADS / WARP;
constexpr int UNIT = 8;            // neighbouring channels that the matrix units take of a pixel at once
constexpr int TILE_PIXELS = 256;   // of the target, at most
constexpr int MOST_STAGED = 4096;  // pixels; a place among them is told in 12 bits

// Pixels between units that are staged: those of one pixel begin a quarter of the banks apart.
constexpr int plane_of(int pixels) { return (pixels + 7) / 8 * 8 + 2; }

// Of a warp's sums as they leave it: pixels at once, and floats between them.
constexpr int sums_at_once(int outputs) { return 512 / outputs; }
constexpr int sums_pitch(int outputs) { return outputs + 4; }

// Tiles of 8 columns that a warp of the filters' gradient sums, of 16 * rows outputs: what it has registers for.
constexpr int columns_of_warp(int rows) { return rows == 1 ? 16 : 10; }

struct GroupedShape {
    int itemsize = 4;
    int filter_height = 1, filter_width = 1;
    int skip = 1;                 // rows of the source for one of the target
    int inputs = 1, outputs = 1;  // channels of a group of the source and of the target
    int target_height = 1, target_width = 1;
    int samples = 1, groups = 1;
};

// Offsets and sizes of shared memory are in bytes.
struct GroupedPlan {
    bool fits = false;
    int outputs = 0, output_chunks = 0;  // channels of the target of a block of threads
    int units = 0, chunks = 0;           // of 8 channels of the source that are staged at once
    int taps = 0, tap_ranges = 1;        // of a block of threads
    int tap_units = 0;                   // taps by units
    int capacity = 0, plane = 0;         // staged pixels: at most, and with what keeps units apart
    int across = 1;                      // filters' gradient: warps that share the taps, the others sharing the pixels
    bool resident = false;               // the filters are loaded once
    int pixels = 0, bases = 0, bias = 0, staged = 0, reach = 0, filters = 0, filter_bytes = 0, scratch = 0;
    int stage = 0, grads = 0, stage_bytes = 0, shared_bytes = 0;
    int segments = 0;
};

inline void share_channels(GroupedPlan& plan, const GroupedShape& shape, int most) {
    const int all = divided_up(shape.inputs, UNIT);
    plan.chunks = divided_up(all, std::min(all, most));
    plan.units = divided_up(all, plan.chunks);
}

// What the narrowest of the cuts stages at least.
inline int64_t least_capacity(const GroupedShape& shape) {
    return int64_t(shape.filter_height) * (shape.skip * 7 + shape.filter_width);
}

inline int wanted_capacity(const GroupedShape& shape) {
    const int64_t square = int64_t(shape.skip * 15 + shape.filter_height) * (shape.skip * 15 + shape.filter_width);
    // A quarter more: several small pieces have more of a halo than one large one.
    return int(std::max(std::min<int64_t>(square + square / 4, MOST_STAGED), least_capacity(shape)));
}

inline int unit_bytes(const GroupedPlan& plan, const GroupedShape& shape, int planes) {
    return planes * plan.plane * UNIT * shape.itemsize;
}

// The tables of where what is: the pixels of a tile, their bases, the bias, staged pixels, and how far the taps reach.
inline int place_tables(GroupedPlan& plan) {
    plan.tap_units = plan.taps * plan.units;
    plan.plane = plane_of(plan.capacity);
    plan.bases = plan.pixels + TILE_PIXELS * 4;
    plan.bias = plan.bases + TILE_PIXELS * 4;
    plan.staged = plan.bias + plan.outputs * 4;
    plan.reach = plan.staged + plan.capacity * 4;
    return plan.reach + (plan.tap_units + 1) * 4;
}

constexpr int GROUPED_ALIGNMENT = 128;

inline void place_correlation(GroupedPlan& plan, const GroupedShape& shape) {
    constexpr int RESIDENT_BYTES = 48 * 1024;
    plan.filters = rounded_up(place_tables(plan), GROUPED_ALIGNMENT);
    plan.filter_bytes = rounded_up(rounded_up(plan.tap_units, 2) * (plan.outputs + 1) * UNIT * shape.itemsize,
                                   GROUPED_ALIGNMENT);
    plan.resident = plan.chunks == 1 || int64_t(plan.chunks) * plan.filter_bytes <= RESIDENT_BYTES;
    plan.scratch = plan.filters + plan.filter_bytes * (plan.resident ? plan.chunks : STAGES);
    plan.stage = plan.scratch + GROUPED_WARPS * sums_at_once(plan.outputs) * sums_pitch(plan.outputs) * 4;
    plan.stage_bytes = rounded_up(unit_bytes(plan, shape, plan.units), GROUPED_ALIGNMENT);
    plan.shared_bytes = plan.stage + STAGES * plan.stage_bytes;
}

inline void place_filters_gradient(GroupedPlan& plan, const GroupedShape& shape) {
    const int columns = columns_of_warp(plan.outputs / 16);
    const int all = shape.filter_height * shape.filter_width;
    plan.tap_ranges = divided_up(all, std::max(GROUPED_WARPS * columns / plan.units, 1));
    plan.taps = divided_up(all, plan.tap_ranges);
    plan.stage = rounded_up(place_tables(plan), GROUPED_ALIGNMENT);
    plan.across = 1;
    while (plan.across * columns < rounded_up(plan.tap_units, 2)) plan.across *= 2;
    plan.grads = rounded_up(unit_bytes(plan, shape, plan.units), GROUPED_ALIGNMENT);
    plan.stage_bytes = plan.grads + plan.outputs * plane_of(TILE_PIXELS) * shape.itemsize;
    plan.stage_bytes = rounded_up(plan.stage_bytes, GROUPED_ALIGNMENT);
    // When all tiles are done, the sums of the warps take the place of the stages.
    const int sums = GROUPED_WARPS / plan.across * plan.outputs * (plan.tap_units * UNIT + UNIT + 1) * 4;
    plan.shared_bytes = plan.stage + std::max(STAGES * plan.stage_bytes, sums);
}

// Stages less at once, if it can be.
inline bool shrink(GroupedPlan& plan, const GroupedShape& shape) {
    if (plan.units > 1) share_channels(plan, shape, plan.units - 1);
    else if (plan.capacity > least_capacity(shape))
        plan.capacity = std::max(plan.capacity * 3 / 4, int(least_capacity(shape)));
    else return false;
    return true;
}

template <class Place>
void fit(GroupedPlan& plan, const GroupedShape& shape, DeviceLimits limits, const Place& place) {
    constexpr int MOST_UNITS = 4, STAGE_BYTES = 16 * 1024;
    if (least_capacity(shape) > MOST_STAGED) return;
    plan.taps = shape.filter_height * shape.filter_width;
    plan.capacity = wanted_capacity(shape);
    share_channels(plan, shape, MOST_UNITS);
    place(plan, shape);
    while (unit_bytes(plan, shape, plan.units) > STAGE_BYTES && shrink(plan, shape)) place(plan, shape);
    while (plan.shared_bytes > limits.shared_bytes && shrink(plan, shape)) place(plan, shape);
    plan.fits = plan.shared_bytes <= limits.shared_bytes;
}

// Blocks of threads that share the tiles of a group.
inline void share_tiles(GroupedPlan& plan, const GroupedShape& shape, DeviceLimits limits, int64_t blocks_of_group) {
    constexpr int BLOCKS_OF_MULTIPROCESSOR = 4;
    if (!plan.fits) return;
    const int64_t others = int64_t(shape.samples) * shape.groups * blocks_of_group;
    const int64_t wanted = int64_t(BLOCKS_OF_MULTIPROCESSOR) * limits.multiprocessors;
    const int64_t pixels = int64_t(shape.target_height) * shape.target_width;
    const int64_t tiles = std::max<int64_t>((pixels + TILE_PIXELS - 1) / TILE_PIXELS, 1);
    plan.segments = int(std::clamp<int64_t>((wanted + others - 1) / others, 1, tiles));
}

// Of the correlation that makes the output or, from its gradient, the input's; or fits = false.
inline GroupedPlan plan_correlation(const GroupedShape& shape, DeviceLimits limits) {
    GroupedPlan plan;
    for (plan.outputs = std::clamp(power_of_two(shape.outputs), 8, 32); !plan.fits; plan.outputs /= 2) {
        fit(plan, shape, limits, place_correlation);
        if (plan.fits || plan.outputs == 8) break;
    }
    plan.output_chunks = divided_up(shape.outputs, plan.outputs);
    share_tiles(plan, shape, limits, plan.output_chunks);
    return plan;
}

inline GroupedPlan plan_filters_gradient(const GroupedShape& shape, DeviceLimits limits) {
    GroupedPlan plan;
    plan.outputs = shape.outputs <= 16 ? 16 : 32;
    fit(plan, shape, limits, place_filters_gradient);
    plan.output_chunks = divided_up(shape.outputs, plan.outputs);
    share_tiles(plan, shape, limits, int64_t(plan.output_chunks) * plan.chunks * plan.tap_ranges);
    return plan;
}

}  // namespace hamlet::cuda
