// How a depthwise convolution is cut into tiles and shared memory: arithmetic alone, for the host.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "pack.h"

namespace hamlet::cuda {

constexpr int DEPTHWISE_THREADS = 128;
constexpr int STAGES = 2;
constexpr int STAGE_ALIGNMENT = 128;  // in bytes, as the bulk copy engine asks for

// Rows of a tile that a thread sums at once, and neighbouring channels of a thread. What it holds in registers bounds
// both: in a backward also the sums of the filters' gradient, `kernel` squared of them (0: they are in shared memory).
constexpr int rows_at_once(int kernel, bool channels_last, bool backward) {
    if (channels_last) return 4;
    return backward && kernel == 7 ? 3 : 7;
}

constexpr int channels_at_once(int itemsize, int kernel, bool channels_last, bool backward) {
    if (!channels_last) return 1;
    if (!backward) return COPY_BYTES / itemsize;
    return kernel == 3 ? 4 : kernel == 5 ? 2 : 1;
}

// Sizes of filters that have kernels of their own, with stride 1 on the side that is read; 0: the general kernel.
constexpr int specialised(int height, int width, int skip) {
    return height == width && skip == 1 && (height == 3 || height == 5 || height == 7) ? height : 0;
}

struct DepthwiseShape {
    bool channels_last = false, backward = false;
    int itemsize = 4;
    int filter_height = 1, filter_width = 1;
    int skip = 1;                           // rows of the source for one of the target
    int source_width = 1;
    int target_height = 1, target_width = 1;
    int samples = 1, blocks = 1, channels = 1;  // channels of each block
};

// Offsets and sizes of shared memory are in bytes, pitches in elements.
struct DepthwisePlan {
    bool fits = false;
    int rows = 0;     // of a tile at most
    int lanes = 0;    // columns that threads work on at the same time
    int vectors = 0;  // groups of channels that threads work on at the same time
    int chunk = 0;    // channels of a block of threads
    int columns = 0;  // of a staged row, channels_last
    int pitch = 0, plane = 0;  // contiguous: what a staged row and plane take, less what aligns them
    int threads = 0;
    int scratch = 0, stage = 0, stage_bytes = 0, barriers = 0, shared_bytes = 0;
    int chunks = 0, segments = 0;
};

inline int rounded_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }
inline int divided_up(int value, int by) { return (value + by - 1) / by; }
inline int power_of_two(int value) { return int(std::bit_ceil(unsigned(value))); }

inline void place_threads(DepthwisePlan& plan, const DepthwiseShape& shape, int vector) {
    if (shape.channels_last) {
        constexpr int FORWARD_BYTES = 128, BACKWARD_BYTES = 64;
        const int bytes = shape.backward ? BACKWARD_BYTES : FORWARD_BYTES;
        const int most = std::min(bytes / (vector * shape.itemsize), power_of_two(divided_up(shape.channels, vector)));
        plan.vectors = std::max(most, COPY_BYTES / (vector * shape.itemsize));
        plan.lanes = std::min(DEPTHWISE_THREADS / plan.vectors, power_of_two(shape.target_width));
        plan.lanes = std::max(plan.lanes, divided_up(WARP, plan.vectors));
    } else {
        plan.lanes = divided_up(shape.target_width, divided_up(shape.target_width, DEPTHWISE_THREADS));
        plan.vectors = std::min(DEPTHWISE_THREADS / plan.lanes, shape.channels);
    }
}

inline void place_memory(DepthwisePlan& plan, const DepthwiseShape& shape, int vector) {
    plan.threads = rounded_up(plan.lanes * plan.vectors, WARP);
    plan.chunk = plan.vectors * vector;
    plan.chunks = divided_up(shape.channels, plan.chunk);
    const int aligned = COPY_BYTES / shape.itemsize;
    const int taps = shape.filter_height * shape.filter_width;
    const int staged_rows = shape.skip * (plan.rows - 1) + shape.filter_height;
    int elements;
    if (shape.channels_last) {
        plan.columns = shape.skip * (plan.lanes - 1) + shape.filter_width;
        elements = staged_rows * plan.columns * plan.chunk;
    } else {
        // A row begins as far from a multiple of what is copied as it does in global memory, so its pitch is this and,
        // for that, less than `aligned` more; slots of neighbouring rows do not meet.
        plan.pitch = rounded_up(shape.source_width + 2 * (aligned - 1), aligned);
        plan.plane = rounded_up(staged_rows * (plan.pitch + aligned - 1), aligned);
        elements = plan.vectors * (plan.plane + aligned - 1) + 2 * aligned;
    }
    plan.stage_bytes = rounded_up(elements * shape.itemsize, STAGE_ALIGNMENT);
    plan.scratch = rounded_up(taps * plan.chunk * 4, COPY_BYTES);
    const int sums = shape.backward ? (taps + 1) * plan.lanes * plan.chunk * 4 : 0;
    plan.stage = rounded_up(plan.scratch + sums, STAGE_ALIGNMENT);
    plan.barriers = plan.stage + STAGES * plan.stage_bytes;
    plan.shared_bytes = plan.barriers + STAGES * int(sizeof(uint64_t));
}

// Makes a tile smaller, if it can be.
inline bool shrink(DepthwisePlan& plan, const DepthwiseShape& shape, int vector, int rows) {
    if (plan.rows > rows) plan.rows -= rows;
    else if (shape.channels_last && plan.lanes * plan.vectors > WARP && plan.lanes > 1) plan.lanes /= 2;
    else if (shape.channels_last && plan.vectors * vector * shape.itemsize > COPY_BYTES)
        plan.vectors /= 2, plan.lanes *= 2;
    else if (!shape.channels_last && plan.vectors > 1) plan.vectors = divided_up(plan.vectors, 2);
    else return false;
    return true;
}

// Tiles that fit in the device's shared memory, or fits = false.
inline DepthwisePlan plan_depthwise(const DepthwiseShape& shape, DeviceLimits limits) {
    constexpr int BLOCKS_OF_MULTIPROCESSOR = 8, MOST_ROWS = 8;
    constexpr int STAGE_BYTES = 24 * 1024;
    DepthwisePlan plan;
    const int kernel = specialised(shape.filter_height, shape.filter_width, shape.skip);
    const int rows = rows_at_once(kernel, shape.channels_last, shape.backward);
    const int vector = channels_at_once(shape.itemsize, kernel, shape.channels_last, shape.backward);
    place_threads(plan, shape, vector);
    plan.rows = std::min(rows * (shape.channels_last ? 2 : MOST_ROWS), rounded_up(shape.target_height, rows));
    place_memory(plan, shape, vector);
    while (plan.rows > rows && plan.stage_bytes > STAGE_BYTES) {
        plan.rows -= rows;
        place_memory(plan, shape, vector);
    }
    while (plan.shared_bytes > limits.shared_bytes && shrink(plan, shape, vector, rows))
        place_memory(plan, shape, vector);
    plan.fits = plan.shared_bytes <= limits.shared_bytes;
    const int tiles = divided_up(shape.target_height, plan.rows) *
                      (shape.channels_last ? divided_up(shape.target_width, plan.lanes) : 1);
    const int64_t others = int64_t(shape.samples) * shape.blocks * plan.chunks;
    const int64_t wanted = int64_t(BLOCKS_OF_MULTIPROCESSOR) * limits.multiprocessors;
    plan.segments = int(std::clamp<int64_t>((wanted + others - 1) / others, 1, tiles));
    return plan;
}

}  // namespace hamlet::cuda
