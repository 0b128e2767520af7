// What the grouped convolution's kernels share: their parameters, what a block of threads works on, and how pixels come
// into shared memory. There 8 channels of a pixel are a unit, and the same unit of all pixels a plane, so that the rows
// of 16 bytes which matrices are loaded by can be read from wherever a tap reaches.
#pragma once

#include "grouped_tiles.h"

namespace hamlet::cuda {

template <class T>
struct Grouped {
    Image<T> source, target;   // filters' gradient: the convolution's input, and the output's gradient
    Global<T> filters;         // (samples, groups, outputs, inputs, height, width); `turned`: inputs, outputs
    Global<T> bias;            // (samples, all channels), strides below; may be absent
    Global<float> parts;       // (segments, gradients of the filters, then of the bias)
    Global<int64_t> extent;    // (samples, 2), on the grid of the convolution's input
    Dilations dilations;
    int64_t bias_sample = 0, bias_channel = 0;
    GroupedShape shape;
    GroupedPlan plan;
    int blocks = 1, spread = 1;   // of dilation; what stands between neighbours of the source
    bool turned = false, residual = false, aligned_source = false, aligned_target = false;
};

struct Pixel {
    int y, x;
    bool exists;
};

// What of a group a block works on is one of so many parts. Groups change fastest: channels_last, neighbouring ones have
// sectors of memory in common.
struct Work {
    int group, part, segment, sample;

    HAMLET_DEVICE Work(int groups, int parts, int segments) {
        int index = block_index();
        group = index % groups, index /= groups;
        part = index % parts, index /= parts;
        segment = index % segments, sample = index / segments;
    }
};

template <class T>
struct GroupedBlock {
    const Grouped<T>& p;
    const Work work;
    const int step;
    const Cut cut;
    const Limits source_limits, target_limits;

    HAMLET_DEVICE GroupedBlock(const Grouped<T>& parameters, int parts)
        : p(parameters),
          work(p.shape.groups, parts, p.plan.segments),
          step(p.dilations.of(work.sample, work.group / (p.shape.groups / p.blocks), p.blocks)),
          cut(best_cut(p.shape, p.plan.capacity, step)),
          source_limits(valid_part(p.source, p.extent, work.sample, p.spread)),
          target_limits(valid_part(p.target, p.extent, work.sample, p.shape.skip)) {}

    HAMLET_DEVICE int taps() const { return p.shape.filter_height * p.shape.filter_width; }
    HAMLET_DEVICE Shared<uint32_t> staged_spots() const { return shared_memory().template as<uint32_t>(p.plan.staged); }
    HAMLET_DEVICE Shared<uint32_t> spots() const { return shared_memory().template as<uint32_t>(p.plan.pixels); }
    HAMLET_DEVICE Shared<int> bases() const { return shared_memory().template as<int>(p.plan.bases); }
    HAMLET_DEVICE Shared<int> reach() const { return shared_memory().template as<int>(p.plan.reach); }
    HAMLET_DEVICE Shared<T> stage(int number) const {
        return shared_memory().template as<T>(p.plan.stage + number % STAGES * p.plan.stage_bytes);
    }
    HAMLET_DEVICE int own_tiles() const {
        return (cut.tiles() - work.segment + p.plan.segments - 1) / p.plan.segments;
    }
    HAMLET_DEVICE Corner corner_of(int turn) const { return {cut, step, work.segment + turn * p.plan.segments}; }

    // All tiles are alike, so what is where in one is told once, in tables.
    HAMLET_DEVICE void list_spots() const {
        const int columns = cut.staged_columns;
        for (int i = thread_index(); i < cut.pieces * cut.staged; i += GROUPED_THREADS) {
            const int piece = i / cut.staged, row = (i - piece * cut.staged) / columns;
            staged_spots().store(i, Spot::packed(piece, row, i - piece * cut.staged - row * columns));
        }
        for (int i = thread_index(); i < TILE_PIXELS; i += GROUPED_THREADS) {
            const int piece = i / cut.piece_pixels(), within = i - piece * cut.piece_pixels();
            const int row = within / cut.across.length, column = within - row * cut.across.length;
            const bool exists = piece < cut.pieces;
            const int base = piece * cut.staged + p.shape.skip * (row * columns + column);
            spots().store(i, exists ? Spot::packed(piece, row, column) : Spot::NONE);
            bases().store(i, exists ? base * UNIT : 0);
        }
    }

    // How far from a pixel's base the units of the taps from `first` on lie; one more than there are can be read.
    HAMLET_DEVICE void list_reach(int first) const {
        const int count = p.plan.tap_units;
        for (int i = thread_index(); i <= count; i += GROUPED_THREADS) {
            const int own = min(i, count - 1), local = own / p.plan.units, unit = own - local * p.plan.units;
            const int tap = min(first + local, taps() - 1), row = tap / p.shape.filter_width;
            const int column = tap - row * p.shape.filter_width;
            reach().store(i, (unit * p.plan.plane + row * cut.staged_columns + column) * UNIT);
        }
    }

    HAMLET_DEVICE Pixel source_pixel(int i, Corner& corner) const {
        const Spot spot(staged_spots().load(i));
        corner.move(spot.piece);
        const int up = p.shape.filter_height / 2, left = p.shape.filter_width / 2;
        const int y = position(corner.y * p.shape.skip + (spot.row - up) * step, p.spread, source_limits.height);
        const int x = position(corner.x * p.shape.skip + (spot.column - left) * step, p.spread, source_limits.width);
        return {y, x, corner.exists && y >= 0 && x >= 0};
    }

    // Of the target; what exists may still not be valid.
    HAMLET_DEVICE Pixel target_pixel(int i, Corner& corner) const {
        const uint32_t packed = spots().load(i);
        if (packed == Spot::NONE) return {0, 0, false};
        const Spot spot(packed);
        corner.move(spot.piece);
        const int y = corner.y + spot.row * step, x = corner.x + spot.column * step;
        return {y, x, corner.exists && y < p.target.height && x < p.target.width};
    }
    HAMLET_DEVICE bool is_valid(const Pixel& pixel) const {
        return pixel.exists && pixel.y < target_limits.height && pixel.x < target_limits.width;
    }

    // `units` of the channels [first, first + channels) of so many pixels, zeros where there is none; place(i) tells
    // where pixel i is.
    template <class Where>
    HAMLET_DEVICE void stage_pixels(const Image<T>& image, bool aligned, int first, int channels, int units, int plane,
                                    int pixels, Shared<T> to, const Where& place) const {
        if (aligned) {
            const int slots = units * UNIT / COPIED<T>, at_once = GROUPED_THREADS / slots;
            const int own = thread_index() / slots, channel = (thread_index() - own * slots) * COPIED<T>;
            const int target = channel / UNIT * plane * UNIT + channel % UNIT;
            for (int i = own; i < pixels && own < at_once; i += at_once) {
                const Pixel pixel = place(i);
                copy_async(to, target + i * UNIT, image.data,
                           image.offset(work.sample, first + channel, pixel.y, pixel.x),
                           pixel.exists && channel < channels);
            }
            return;
        }
        for (int i = thread_index(); i < pixels; i += GROUPED_THREADS) {
            const Pixel pixel = place(i);
            const int64_t from = image.offset(work.sample, first, pixel.y, pixel.x);
            HAMLET_ROLLED
            for (int unit = 0; unit < units; ++unit) {
                Pack<T, UNIT> found{};
                HAMLET_UNROLL
                for (int e = 0; e < UNIT; ++e) {
                    const int channel = unit * UNIT + e;
                    if (pixel.exists && channel < channels)
                        found.element[e] = image.data.load(from + channel * image.channel);
                }
                to.template store_pack<UNIT>((unit * plane + i) * UNIT, found);
            }
        }
    }

    // The source's channels from `first` of the group on, with the halo.
    HAMLET_DEVICE void stage_source(int turn, int first, Shared<T> to) const {
        Corner corner = corner_of(turn);
        stage_pixels(p.source, p.aligned_source, work.group * p.shape.inputs + first, p.shape.inputs - first,
                     p.plan.units, p.plan.plane, cut.pieces * cut.staged, to,
                     [&](int i) { return source_pixel(i, corner); });
    }
};

}  // namespace hamlet::cuda
