// The grouped convolution's output or, from the output's gradient, the input's gradient: a block of threads owns some
// channels of one group of the target, and of its pixels every so many tiles.
#pragma once

#include "grouped.h"
#include "grouped_products.h"

namespace hamlet::cuda {

// N times 8 channels of the target.
template <class T, bool TF32, int N>
struct GroupedCorrelation : GroupedBlock<T> {
    using Base = GroupedBlock<T>;
    using Base::p, Base::work, Base::cut, Base::stage, Base::taps;
    using Products = GroupedProducts<T, TF32>;
    static constexpr int M = TILE_PIXELS / GROUPED_WARPS / 16, OUTPUTS = N * 8, PITCH = sums_pitch(OUTPUTS);
    static constexpr int ROWS_AT_ONCE = sums_at_once(OUTPUTS), M_AT_ONCE = ROWS_AT_ONCE / 16;  // that leave a warp

    const int first_output;

    HAMLET_DEVICE explicit GroupedCorrelation(const Grouped<T>& parameters)
        : Base(parameters, parameters.plan.output_chunks), first_output(work.part * OUTPUTS) {}

    HAMLET_DEVICE Shared<float> bias() const { return shared_memory().template as<float>(p.plan.bias); }
    HAMLET_DEVICE Shared<T> filters(int number) const {
        return shared_memory().template as<T>(p.plan.filters + number * p.plan.filter_bytes);
    }
    HAMLET_DEVICE Shared<float> scratch() const {
        return shared_memory().template as<float>(p.plan.scratch) + thread_index() / WARP * ROWS_AT_ONCE * PITCH;
    }

    // The filters for a chunk of the source's channels, by tap, unit and output, loaded in their order in memory.
    HAMLET_DEVICE void load_filters(int chunk, Shared<T> to) const {
        const int inner = p.plan.units * UNIT, first_input = chunk * inner, size = taps();
        const int64_t of_group = int64_t(work.sample) * p.shape.groups + work.group;
        for (int i = thread_index(); i < OUTPUTS * inner * size; i += GROUPED_THREADS) {
            const int rest = i / size, tap = i - rest * size;
            const int n = p.turned ? rest % OUTPUTS : rest / inner, c = p.turned ? rest / OUTPUTS : rest - n * inner;
            const int output = first_output + n, input = first_input + c;
            const int64_t plane = p.turned ? (of_group * p.shape.inputs + input) * p.shape.outputs + output
                : (of_group * p.shape.outputs + output) * p.shape.inputs + input;
            const bool exists = output < p.shape.outputs && input < p.shape.inputs;
            const int unit = (p.turned ? size - 1 - tap : tap) * p.plan.units + c / UNIT;
            to.store((unit * (OUTPUTS + 1) + n) * UNIT + c % UNIT, exists ? p.filters.load(plane * size + tap) : T{});
        }
        const int count = p.plan.tap_units;
        if (count % 2)
            for (int i = thread_index(); i < OUTPUTS * UNIT; i += GROUPED_THREADS)
                to.store(count * (OUTPUTS + 1) * UNIT + i, T{});
    }

    HAMLET_DEVICE void load_bias() const {
        for (int n = thread_index(); n < OUTPUTS; n += GROUPED_THREADS) {
            const bool exists = p.bias && first_output + n < p.shape.outputs;
            const int64_t channel = work.group * p.shape.outputs + first_output + n;
            const int64_t from = work.sample * p.bias_sample + channel * p.bias_channel;
            bias().store(n, exists ? number(p.bias.load(from)) : 0);
        }
    }

    HAMLET_DEVICE void stage_step(int number) const {
        const int turn = number / p.plan.chunks, chunk = number - turn * p.plan.chunks;
        this->stage_source(turn, chunk * p.plan.units * UNIT, stage(number));
        if (!p.plan.resident) load_filters(chunk, filters(number % STAGES));
    }

    HAMLET_DEVICE void start(float (&sums)[M][N][4]) const {
        HAMLET_UNROLL
        for (int n = 0; n < N; ++n) {
            const auto from = bias().template load_pack<2>(n * 8 + lane_index() % 4 * 2);
            HAMLET_UNROLL
            for (int m = 0; m < M; ++m)
                HAMLET_UNROLL
                for (int i = 0; i < 4; ++i) sums[m][n][i] = from.element[i % 2];
        }
    }

    // Channels of the target at a pixel, COUNT of them side by side, from the sums in this warp's scratch on.
    template <int COUNT>
    HAMLET_DEVICE void write(int row, int channel, const Pixel& pixel) const {
        constexpr int TOGETHER = COUNT < 4 ? COUNT : 4;
        const bool valid = this->is_valid(pixel);
        const int first = work.group * p.shape.outputs + first_output + channel;
        float sums[COUNT];
        HAMLET_UNROLL
        for (int e = 0; e < COUNT; e += TOGETHER) {
            const auto found = scratch().template load_pack<TOGETHER>(row * PITCH + channel + e);
            HAMLET_UNROLL
            for (int i = 0; i < TOGETHER; ++i) sums[e + i] = valid ? found.element[i] : 0;
        }
        if (p.residual && valid) {
            const int64_t from = p.source.offset(work.sample, first, pixel.y, pixel.x);
            const auto added = p.source.data.template load_pack<COUNT>(from);
            HAMLET_UNROLL
            for (int e = 0; e < COUNT; ++e) sums[e] += number(added.element[e]);
        }
        Pack<T, COUNT> result;
        HAMLET_UNROLL
        for (int e = 0; e < COUNT; ++e) result.element[e] = stored<T>(sums[e]);
        p.target.data.template store_pack<COUNT>(p.target.offset(work.sample, first, pixel.y, pixel.x), result);
    }

    // The sums in a warp's scratch, of so many pixels of the tile from `first` on, to the target.
    HAMLET_DEVICE void write_rows(int first, Corner& corner) const {
        const int channels = p.shape.outputs - first_output;
        if (p.aligned_target) {
            constexpr int SLOTS = OUTPUTS / COPIED<T>;
            HAMLET_ROLLED
            for (int i = lane_index(); i < ROWS_AT_ONCE * SLOTS; i += WARP) {
                const int row = i / SLOTS, channel = i % SLOTS * COPIED<T>;
                const Pixel pixel = this->target_pixel(first + row, corner);
                if (pixel.exists && channel < channels) write<COPIED<T>>(row, channel, pixel);
            }
        } else {
            // Lanes side by side write pixels side by side.
            constexpr int LANES = ROWS_AT_ONCE < WARP ? ROWS_AT_ONCE : WARP;
            HAMLET_ROLLED
            for (int row = lane_index() % LANES; row < ROWS_AT_ONCE; row += LANES) {
                const Pixel pixel = this->target_pixel(first + row, corner);
                if (!pixel.exists) continue;
                HAMLET_ROLLED
                for (int channel = lane_index() / LANES; channel < min(channels, OUTPUTS); channel += WARP / LANES)
                    write<1>(row, channel, pixel);
            }
        }
    }

    HAMLET_DEVICE void write_tile(int turn, const float (&sums)[M][N][4]) const {
        const int lane = lane_index(), first = thread_index() / WARP * M * 16;
        Corner corner = this->corner_of(turn);
        HAMLET_UNROLL
        for (int begin = 0; begin < M; begin += M_AT_ONCE) {
            synchronise_warp();
            HAMLET_UNROLL
            for (int m = 0; m < M_AT_ONCE; ++m)
                HAMLET_UNROLL
                for (int n = 0; n < N; ++n)
                    HAMLET_UNROLL
                    for (int r = 0; r < 2; ++r) {
                        const int row = m * 16 + lane / 4 + r * 8;
                        const auto& from = sums[begin + m][n];
                        scratch().template store_pack<2>(row * PITCH + n * 8 + lane % 4 * 2,
                                                         {{from[r * 2], from[r * 2 + 1]}});
                    }
            synchronise_warp();
            write_rows(first + begin * 16, corner);
        }
    }

    HAMLET_DEVICE void prepare() const {
        this->list_spots();
        this->list_reach(0);
        load_bias();
        if (p.plan.resident)
            for (int chunk = 0; chunk < p.plan.chunks; ++chunk) load_filters(chunk, filters(chunk));
        synchronise();
    }

    HAMLET_DEVICE void run() const {
        prepare();
        int bases[M][Products::HELD];
        HAMLET_UNROLL
        for (int m = 0; m < M; ++m)
            HAMLET_UNROLL
            for (int held = 0; held < Products::HELD; ++held)
                bases[m][held] = this->bases().load((thread_index() / WARP * M + m) * 16 + Products::row(held));
        const int steps = this->own_tiles() * p.plan.chunks;
        float sums[M][N][4];
        if (steps > 0) stage_step(0);
        commit_copies();
        int chunk = 0;
        HAMLET_ROLLED
        for (int number = 0; number < steps; ++number) {
            if (number + 1 < steps) stage_step(number + 1);
            commit_copies();
            wait_for_copies<1>();
            synchronise();
            if (chunk == 0) start(sums);
            Products::correlate(stage(number), bases, this->reach(), filters(p.plan.resident ? chunk : number % STAGES),
                                p.plan.tap_units, sums);
            if (++chunk == p.plan.chunks) write_tile(number / p.plan.chunks, sums), chunk = 0;
            // All must be done with a stage before it is filled again.
            synchronise();
        }
        wait_for_copies<0>();
    }
};

template <class T, bool TF32, int N>
HAMLET_KERNEL(GROUPED_THREADS)
grouped_correlation(HAMLET_PARAMETERS Grouped<T> parameters) {
    GroupedCorrelation<T, TF32, N>(parameters).run();
}

}  // namespace hamlet::cuda
