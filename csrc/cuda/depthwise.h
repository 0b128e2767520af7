// Depthwise convolution with a filter bank a sample, and both halves of its backward, as one correlation.
//
// A block of threads owns some channels of one dilation block. Its tiles are rows and, channels_last, columns that are
// one dilation apart, so a tile with its halo is as small for any dilation, known or read at run time, as for 1. A tile
// is staged in shared memory while the one before is summed. The backward correlates the output's gradient with the
// filters turned round; each value that it reads from shared memory serves the input's and the filters' gradient.
#pragma once

#include "bulk.h"
#include "depthwise_plan.h"
#include "image.h"

namespace hamlet::cuda {

template <class T>
struct Depthwise {
    Image<T> source, target;
    Image<T> input;                // backward: of the convolution, on the target's grid
    Global<T> filters;             // (samples, all channels, height, width)
    Global<T> bias;                // (samples, all channels), strides below
    Global<float> parts;           // backward: (segments, gradients of the filters, then of the bias)
    Dilations dilations;
    Global<int64_t> extent;        // (samples, 2), on the grid of the convolution's input
    int64_t bias_sample = 0, bias_channel = 0;
    DepthwisePlan plan;
    int samples = 0, blocks = 0, channels = 0;
    int filter_height = 1, filter_width = 1;
    int skip = 1, spread = 1;      // what stands between neighbours of the source, and of the target; one of them is 1
    bool residual = false, aligned = false;
    uint32_t boxed = 0;            // dilations, a bit each from 1 on, whose tiles are `boxes` for the copy engine
    TensorMap boxes[MOST_APART];
};

template <class T, int K, bool LAST, bool BACKWARD>
struct DepthwiseBlock {
    static constexpr int R = rows_at_once(K, LAST, BACKWARD), V = channels_at_once(sizeof(T), K, LAST, BACKWARD);
    static constexpr int ALIGNED = COPIED<T>, SUMS = BACKWARD && K > 0 ? K * K : 1;

    struct Tile {
        int y, x, rows;  // of the target; what is summed
        int start;       // contiguous: of the first staged row
    };

    const Depthwise<T>& p;
    int segment, first, count, block, sample, step;  // channels [first, first + count)
    Limits source_limits, target_limits;
    int lane, vector, pitch, plane;
    bool active;
    Shared<float> taps, scratch;
    float gradient[SUMS][V] = {}, bias_gradient[V] = {};

    HAMLET_DEVICE explicit DepthwiseBlock(const Depthwise<T>& parameters) : p(parameters) {
        int index = block_index();
        segment = index % p.plan.segments, index /= p.plan.segments;
        const int chunk = index % p.plan.chunks;
        index /= p.plan.chunks;
        block = index % p.blocks, sample = index / p.blocks;
        first = block * p.channels + chunk * p.plan.chunk;
        count = min(p.channels - chunk * p.plan.chunk, p.plan.chunk);
        step = p.dilations.of(sample, block, p.blocks);
        source_limits = valid_part(p.source, p.extent, sample, p.spread);
        target_limits = valid_part(p.target, p.extent, sample, p.skip);
        const int thread = thread_index();
        lane = LAST ? thread / p.plan.vectors : thread % p.plan.lanes;
        vector = LAST ? thread % p.plan.vectors : thread / p.plan.lanes;
        active = LAST || vector < count;
        // Rows then lie as far from multiples of what is copied as in global memory.
        pitch = bulk() ? p.source.width : p.plan.pitch + int(p.source.row * step % ALIGNED);
        plane = bulk() ? staged_rows(down().length) * pitch : p.plan.plane + int(p.source.channel % ALIGNED);
        taps = shared_memory().template as<float>(0);
        scratch = shared_memory().template as<float>(p.plan.scratch);
    }

    HAMLET_DEVICE int filter_height() const { return K ? K : p.filter_height; }
    HAMLET_DEVICE int filter_width() const { return K ? K : p.filter_width; }
    HAMLET_DEVICE int chunk() const { return p.plan.chunk; }
    HAMLET_DEVICE bool bulk() const { return HAMLET_BULK_COPIES && step <= MOST_APART && p.boxed >> (step - 1) & 1; }
    HAMLET_DEVICE Walk down() const { return Walk(p.target.height, step, p.plan.rows, R); }
    HAMLET_DEVICE CopyBarrier barrier(int number) const {
        return shared_memory().template as<uint64_t>(p.plan.barriers) + number % STAGES;
    }
    HAMLET_DEVICE Shared<T> stage(int number) const {
        return shared_memory().template as<T>(p.plan.stage + number % STAGES * p.plan.stage_bytes);
    }
    HAMLET_DEVICE int source_y(const Tile& tile, int row) const {
        return position(tile.y * p.skip + (row - filter_height() / 2) * step, p.spread, source_limits.height);
    }
    HAMLET_DEVICE int staged_rows(int rows) const { return p.skip * (rows - 1) + filter_height(); }

    // The filters as float32, [tap][channel]; turned round for a backward.
    HAMLET_DEVICE void load_taps() const {
        const int size = filter_height() * filter_width();
        for (int i = thread_index(); i < chunk() * size; i += block_size()) {
            const int channel = i / size, tap = i - channel * size;
            const int64_t from = (int64_t(sample) * p.blocks * p.channels + first) * size + i;
            taps.store((BACKWARD ? size - 1 - tap : tap) * chunk() + channel,
                       channel < count ? number(p.filters.load(from)) : 0);
        }
    }

    HAMLET_DEVICE void stage_tile(const Tile& tile, int turn) const {
        if (bulk()) return stage_box(tile, turn);
        if constexpr (LAST) stage_pixels(tile, stage(turn));
        else stage_lines(tile, stage(turn));
        commit_copies();
    }

    HAMLET_DEVICE void wait_for_tile(int turn) const {
        if (bulk()) return wait_for_box(barrier(turn), turn / STAGES);
        wait_for_copies<STAGES - 1>();
        synchronise();
    }

    // By the copy engine, with zeros for what is outside the image.
    HAMLET_DEVICE void stage_box(const Tile& tile, int turn) const {
        if (thread_index() != 0) return;
        const int y = tile.y * p.skip - filter_height() / 2 * step, x = tile.x * p.skip - filter_width() / 2 * step;
        const int elements = LAST ? staged_rows(tile.rows) * p.plan.columns * chunk() : plane * chunk();
        const int channel = first - block * p.channels;
        const int corner[RANK] = {LAST ? channel : 0, LAST ? x : y, LAST ? y : channel, block, sample};
        copy_box(stage(turn), p.boxes[step - 1], corner, barrier(turn), elements * int(sizeof(T)));
    }

    // channels_last: pixels one dilation apart, the channels of each together.
    HAMLET_DEVICE void stage_pixels(const Tile& tile, Shared<T> to) const {
        const int slots = chunk() / ALIGNED, columns = p.plan.columns;
        const int pixels = staged_rows(tile.rows) * columns, at_once = block_size() / slots;
        const int channel = thread_index() % slots * ALIGNED;
        if (thread_index() >= at_once * slots) return;
        for (int i = thread_index() / slots; i < pixels; i += at_once) {
            const int row = i / columns, column = i - row * columns;
            const int y = source_y(tile, row);
            const int x = position(tile.x * p.skip + (column - filter_width() / 2) * step, p.spread,
                source_limits.width);
            const bool exists = y >= 0 && x >= 0;
            const int64_t from = p.source.offset(sample, first + channel, y, x);
            const int target = i * chunk() + channel;
            if (p.aligned) {
                copy_async(to, target, p.source.data, from, exists && channel < count);
            } else {
                for (int e = 0; e < ALIGNED; ++e)
                    to.store(target + e, exists && channel + e < count ? p.source.data.load(from + e) : T{});
            }
        }
    }

    // Contiguous: whole rows, and with them what lies beside them in the 16 bytes where they begin and end.
    HAMLET_DEVICE void stage_lines(const Tile& tile, Shared<T> to) const {
        const int width = p.source.width, slots = (width + 2 * (ALIGNED - 1)) / ALIGNED, rows = staged_rows(tile.rows);
        for (int i = thread_index(); i < count * rows * slots; i += block_size()) {
            const int line = i / slots, slot = i - line * slots, channel = line / rows, row = line - channel * rows;
            const int begin = tile.start + channel * plane + row * pitch;
            const int target = begin - begin % ALIGNED + slot * ALIGNED;
            if (target >= begin + width) continue;
            const int y = source_y(tile, row);
            const int64_t from = p.source.offset(sample, first + channel, y, 0) + (target - begin);
            if (p.aligned && (y < 0 || (from >= 0 && from + ALIGNED <= p.source.count))) {
                copy_async(to, target, p.source.data, from, y >= 0);
            } else {
                for (int e = max(begin - target, 0); e < min(begin + width - target, ALIGNED); ++e)
                    to.store(target + e, y >= 0 ? p.source.data.load(from + e) : T{});
            }
        }
    }

    // The values of this thread's channels that the tap of column `j` meets in a staged row at a column of the target.
    HAMLET_DEVICE void read(Shared<T> from, const Tile& tile, int row, int j, int x, float (&value)[V]) const {
        if constexpr (LAST) {
            const auto found = from.template load_pack<V>((row * p.plan.columns + p.skip * lane + j) * chunk()
                + vector * V);
            HAMLET_UNROLL
            for (int e = 0; e < V; ++e) value[e] = number(found.element[e]);
        } else {
            const int column = position(x * p.skip + (j - filter_width() / 2) * step, p.spread, source_limits.width);
            value[0] = column < 0 ? 0 : number(from.load(tile.start + vector * plane + row * pitch + column));
        }
    }

    HAMLET_DEVICE float tap(int i, int j, int e) const {
        return taps.load((i * filter_width() + j) * chunk() + vector * V + e);
    }

    HAMLET_DEVICE bool vectors_are_whole() const { return p.aligned && (vector + 1) * V <= count; }

    // The convolution's input at this thread's channels of a pixel, 0 where it is not valid.
    HAMLET_DEVICE void read_input(int y, int x, float (&value)[V]) const {
        const bool exists = y < target_limits.height && x < target_limits.width;
        const int64_t from = p.input.offset(sample, first + vector * V, y, x);
        if (V > 1 && vectors_are_whole()) {
            Pack<T, V> found{};
            if (exists) found = p.input.data.template load_pack<V>(from);
            HAMLET_UNROLL
            for (int e = 0; e < V; ++e) value[e] = number(found.element[e]);
        } else {
            HAMLET_UNROLL
            for (int e = 0; e < V; ++e)
                value[e] = exists && vector * V + e < count ? number(p.input.data.load(from + e * p.input.channel)) : 0;
        }
    }

    HAMLET_DEVICE void write(int y, int x, const float (&value)[V]) const {
        if (y >= p.target.height || x >= p.target.width) return;
        const bool valid = y < target_limits.height && x < target_limits.width;
        const int64_t to = p.target.offset(sample, first + vector * V, y, x);
        Pack<T, V> result;
        HAMLET_UNROLL
        for (int e = 0; e < V; ++e) result.element[e] = stored<T>(valid ? value[e] : 0);
        if (V > 1 && vectors_are_whole()) {
            p.target.data.template store_pack<V>(to, result);
        } else {
            HAMLET_UNROLL
            for (int e = 0; e < V; ++e)
                if (vector * V + e < count) p.target.data.store(to + e * p.target.channel, result.element[e]);
        }
    }

    // K x K: each value read serves all the taps of its column, in every row that it is within reach of.
    HAMLET_DEVICE void add_columns(Shared<T> from, const Tile& tile, int top, int x, const float (&given)[R][V],
                                   float (&sums)[R][V]) {
        // A backward's sums are in registers, which only constants can index; a forward has no registers to spare.
        HAMLET_UNROLL_BY(BACKWARD || K <= 3 ? K : 1)
        for (int j = 0; j < K; ++j) {
            float column[K ? K : 1][V];
            HAMLET_UNROLL
            for (int i = 0; i < K; ++i)
                HAMLET_UNROLL
                for (int e = 0; e < V; ++e) column[i][e] = tap(i, j, e);
            HAMLET_UNROLL
            for (int r = 0; r < R + K - 1; ++r) {
                float value[V];
                read(from, tile, top + r, j, x, value);
                HAMLET_UNROLL
                for (int i = 0; i < K; ++i)
                    if (r >= i && r - i < R)
                        HAMLET_UNROLL
                        for (int e = 0; e < V; ++e) {
                            sums[r - i][e] += column[i][e] * value[e];
                            if constexpr (BACKWARD) gradient[i * K + j][e] += given[r - i][e] * value[e];
                            if (BACKWARD && i == K / 2 && j == K / 2) bias_gradient[e] += value[e];
                        }
            }
        }
    }

    // Filters of any size, with any stride: tap after tap, the sums of their gradients in shared memory.
    HAMLET_DEVICE void add_taps(Shared<T> from, const Tile& tile, int top, int x, const float (&given)[R][V],
                                float (&sums)[R][V]) {
        HAMLET_ROLLED
        for (int n = 0; n < filter_height() * filter_width(); ++n) {
            const int i = n / filter_width(), j = n - i * filter_width();
            const bool middle = i == filter_height() / 2 && j == filter_width() / 2;
            float found[V] = {};
            HAMLET_UNROLL
            for (int m = 0; m < R; ++m) {
                float value[V];
                read(from, tile, p.skip * (top + m) + i, j, x, value);
                HAMLET_UNROLL
                for (int e = 0; e < V; ++e) {
                    sums[m][e] += tap(i, j, e) * value[e];
                    found[e] += given[m][e] * value[e];
                    if (BACKWARD && middle) bias_gradient[e] += value[e];
                }
            }
            if constexpr (BACKWARD)
                for (int e = 0; e < V; ++e) {
                    const int own = sum_of_lane(n, e);
                    scratch.store(own, scratch.load(own) + found[e]);
                }
        }
    }

    HAMLET_DEVICE int sum_of_lane(int tap, int e) const {
        return (tap * p.plan.lanes + lane) * chunk() + vector * V + e;
    }

    HAMLET_DEVICE void sum_rows(Shared<T> from, const Tile& tile, int top, int x) {
        float sums[R][V] = {}, given[R][V] = {};
        if (!BACKWARD && p.bias) {
            HAMLET_UNROLL
            for (int e = 0; e < V; ++e) {
                const int64_t channel = first + min(vector * V + e, count - 1);
                const float start = number(p.bias.load(sample * p.bias_sample + channel * p.bias_channel));
                HAMLET_UNROLL
                for (int m = 0; m < R; ++m) sums[m][e] = start;
            }
        }
        if constexpr (BACKWARD) {
            HAMLET_UNROLL
            for (int m = 0; m < R; ++m) read_input(tile.y + (top + m) * step, x, given[m]);
        }
        if constexpr (K > 0) add_columns(from, tile, top, x, given, sums);
        else add_taps(from, tile, top, x, given, sums);
        HAMLET_UNROLL
        for (int m = 0; m < R; ++m) {
            if (p.residual) {
                float value[V];
                read(from, tile, top + m + filter_height() / 2, filter_width() / 2, x, value);
                HAMLET_UNROLL
                for (int e = 0; e < V; ++e) sums[m][e] += value[e];
            }
            write(tile.y + (top + m) * step, x, sums[m]);
        }
    }

    HAMLET_DEVICE void sum_tile(Shared<T> from, const Tile& tile) {
        HAMLET_ROLLED
        for (int top = 0; top < tile.rows; top += R) {
            if constexpr (LAST) {
                sum_rows(from, tile, top, tile.x + lane * step);
            } else {
                HAMLET_ROLLED
                for (int x = lane; x < p.target.width; x += p.plan.lanes) sum_rows(from, tile, top, x);
            }
        }
    }

    HAMLET_DEVICE Tile tile_of(int number, const Walk& down, const Walk& across) const {
        Tile tile{down.start(number / across.tiles(), step), 0, down.length, 0};
        if constexpr (LAST) {
            tile.x = across.start(number % across.tiles(), step);
        } else if (p.aligned && !bulk()) {
            const int y = tile.y * p.skip - filter_height() / 2 * step;
            tile.start = int((p.source.data.misalignment() + p.source.offset(sample, first, y, 0)) & (ALIGNED - 1));
        }
        return tile;
    }

    HAMLET_DEVICE void run() {
        if (bulk() && thread_index() == 0)
            for (int number = 0; number < STAGES; ++number) initialise(barrier(number));
        const Walk down = this->down();
        const int lanes = LAST ? p.plan.lanes : 1;
        const Walk across(LAST ? p.target.width : 1, LAST ? step : 1, lanes, lanes);
        const int tiles = down.tiles() * across.tiles();
        if (segment < tiles) stage_tile(tile_of(segment, down, across), 0);
        load_taps();
        if (BACKWARD && K == 0 && active)
            for (int tap = 0; tap < filter_height() * filter_width(); ++tap)
                for (int e = 0; e < V; ++e) scratch.store(sum_of_lane(tap, e), 0);
        // A box is waited for without a barrier of the block, which would have shown what is in shared memory.
        if (bulk()) synchronise();
        for (int number = segment, turn = 0; number < tiles; number += p.plan.segments, ++turn) {
            const int next = number + p.plan.segments;
            if (next < tiles) stage_tile(tile_of(next, down, across), turn + 1);
            else commit_copies();
            wait_for_tile(turn);
            if (active) sum_tile(stage(turn), tile_of(number, down, across));
            if (bulk()) leave_to_engine();
            // All must be done with a stage before it is filled again.
            synchronise();
        }
        wait_for_copies<0>();
        if constexpr (BACKWARD) leave_parts();
    }

    // This block's share of the gradients of filters and bias, its lanes summed in order.
    HAMLET_DEVICE void leave_parts() {
        const int size = filter_height() * filter_width();
        if (active) {
            if constexpr (K > 0)
                HAMLET_UNROLL
                for (int n = 0; n < SUMS; ++n)
                    HAMLET_UNROLL
                    for (int e = 0; e < V; ++e) scratch.store(sum_of_lane(n, e), gradient[n][e]);
            HAMLET_UNROLL
            for (int e = 0; e < V; ++e) scratch.store(sum_of_lane(size, e), bias_gradient[e]);
        }
        synchronise();
        const int64_t planes = int64_t(p.samples) * p.blocks * p.channels;
        const int64_t plane_of_first = int64_t(sample) * p.blocks * p.channels + first;
        const int64_t begin = segment * planes * (size + 1);
        for (int i = thread_index(); i < (size + 1) * chunk(); i += block_size()) {
            const int n = i / chunk(), channel = i - n * chunk();
            if (channel >= count) continue;
            float sum = 0;
            for (int l = 0; l < p.plan.lanes; ++l) sum += scratch.load((n * p.plan.lanes + l) * chunk() + channel);
            const int64_t plane = plane_of_first + channel;
            p.parts.store(begin + (n < size ? plane * size + size - 1 - n : planes * size + plane), sum);
        }
    }
};

template <class T, int K, bool LAST, bool BACKWARD>
HAMLET_KERNEL(DEPTHWISE_THREADS)
depthwise(HAMLET_PARAMETERS Depthwise<T> parameters) {
    DepthwiseBlock<T, K, LAST, BACKWARD>(parameters).run();
}

}  // namespace hamlet::cuda
