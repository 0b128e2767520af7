// The gradients of a grouped convolution's filters and bias: a block of threads owns some outputs, channels and taps of
// one group, and sums over every so many tiles of pixels. Blocks leave parts, which a second kernel sums in one order.
#pragma once

#include "grouped.h"
#include "grouped_products.h"

namespace hamlet::cuda {

// 16 * M outputs.
template <class T, bool TF32, int M>
struct GroupedFilters : GroupedBlock<T> {
    using Base = GroupedBlock<T>;
    using Base::p, Base::work, Base::cut, Base::stage;
    using Products = GroupedProducts<T, TF32>;
    static constexpr int N = columns_of_warp(M), OUTPUTS = M * 16;

    int first_output, first_input, first_tap;
    int along;        // which of the warps that share the pixels this is
    Columns columns;  // of this warp
    float sums[M][N][4] = {}, of_bias[M][2] = {};

    HAMLET_DEVICE explicit GroupedFilters(const Grouped<T>& parameters)
        : Base(parameters, parameters.plan.output_chunks * parameters.plan.chunks * parameters.plan.tap_ranges) {
        int part = work.part;
        first_output = part % p.plan.output_chunks * OUTPUTS, part /= p.plan.output_chunks;
        first_input = part % p.plan.chunks * p.plan.units * UNIT;
        first_tap = part / p.plan.chunks * p.plan.taps;
        const int warp = thread_index() / WARP;
        along = warp / p.plan.across;
        columns = {warp % p.plan.across, p.plan.across, (p.plan.tap_units + 1) / 2};
    }

    HAMLET_DEVICE Gradients<T> grads(int number) const {
        const int begin = p.plan.stage + number % STAGES * p.plan.stage_bytes + p.plan.grads;
        const int units = (p.shape.outputs - first_output + UNIT - 1) / UNIT;
        return {shared_memory().template as<T>(begin), min(units, OUTPUTS / UNIT)};
    }

    HAMLET_DEVICE void stage_step(int turn) const {
        this->stage_source(turn, first_input, stage(turn));
        Corner corner = this->corner_of(turn);
        const Gradients<T> to = grads(turn);
        this->stage_pixels(p.target, p.aligned_target, work.group * p.shape.outputs + first_output,
                           p.shape.outputs - first_output, to.units, Gradients<T>::PLANE, TILE_PIXELS, to.data,
                           [&](int i) {
                               Pixel pixel = this->target_pixel(i, corner);
                               pixel.exists = this->is_valid(pixel);
                               return pixel;
                           });
    }

    HAMLET_DEVICE void add_tile(int turn, const typename Products::template Reach<N>& reach) {
        const int used = cut.pieces * cut.piece_pixels(), stride = GROUPED_WARPS / p.plan.across * Products::DEPTH;
        HAMLET_ROLLED
        for (int first = along * Products::DEPTH; first < used; first += stride)
            Products::weigh(grads(turn), stage(turn), this->bases(), first, reach, columns, sums, of_bias);
    }

    HAMLET_DEVICE void run() {
        this->list_spots();
        this->list_reach(first_tap);
        synchronise();
        const typename Products::template Reach<N> reach(this->reach(), columns);
        const int turns = this->own_tiles();
        if (turns > 0) stage_step(0);
        commit_copies();
        HAMLET_ROLLED
        for (int turn = 0; turn < turns; ++turn) {
            if (turn + 1 < turns) stage_step(turn + 1);
            commit_copies();
            wait_for_copies<1>();
            synchronise();
            add_tile(turn, reach);
            // All must be done with a stage before it is filled again.
            synchronise();
        }
        wait_for_copies<0>();
        gather_sums();
        synchronise();
        leave_parts();
    }

    // What the warps have summed, where the stages were: (warps, outputs, pitch), then of the bias (warps, outputs).
    HAMLET_DEVICE Shared<float> gathered() const { return shared_memory().template as<float>(p.plan.stage); }
    HAMLET_DEVICE int pitch() const { return p.plan.tap_units * UNIT + UNIT; }
    HAMLET_DEVICE int warps_along() const { return GROUPED_WARPS / p.plan.across; }
    HAMLET_DEVICE Shared<float> gathered_bias() const { return gathered() + warps_along() * OUTPUTS * pitch(); }

    HAMLET_DEVICE void gather_sums() {
        const int row = lane_index() / 4, member = lane_index() % 4;
        HAMLET_UNROLL
        for (int m = 0; m < M; ++m)
            HAMLET_UNROLL
            for (int r = 0; r < 2; ++r) {
                const int output = along * OUTPUTS + m * 16 + r * 8 + row;
                HAMLET_UNROLL
                for (int n = 0; n < N; ++n) {
                    const int unit = columns.pair(n / 2) * 2 + n % 2;
                    if (unit < p.plan.tap_units)
                        gathered().template store_pack<2>(output * pitch() + unit * UNIT + member * 2,
                                                          {{sums[m][n][r * 2], sums[m][n][r * 2 + 1]}});
                }
                of_bias[m][r] += shuffle_xor(of_bias[m][r], 1);
                of_bias[m][r] += shuffle_xor(of_bias[m][r], 2);
                if (member == 0 && columns.first == 0) gathered_bias().store(output, of_bias[m][r]);
            }
    }

    HAMLET_DEVICE float total(Shared<float> from, int i, int apart) const {
        float sum = 0;
        for (int warp = 0; warp < warps_along(); ++warp) sum += from.load(warp * apart + i);
        return sum;
    }

    HAMLET_DEVICE void leave_parts() const {
        const int size = this->taps(), taps = min(p.plan.taps, size - first_tap);
        const int outputs = min(p.shape.outputs - first_output, OUTPUTS);
        const int inputs = min(p.shape.inputs - first_input, p.plan.units * UNIT);
        const int64_t planes = int64_t(p.shape.samples) * p.shape.groups * p.shape.outputs;
        const int64_t bank = int64_t(p.shape.inputs) * size;
        const int64_t first = (int64_t(work.sample) * p.shape.groups + work.group) * p.shape.outputs + first_output;
        const int64_t begin = work.segment * planes * (bank + 1);
        for (int i = thread_index(); i < outputs * inputs * taps; i += GROUPED_THREADS) {
            const int plane = i / taps, tap = i - plane * taps, output = plane / inputs, c = plane - output * inputs;
            const int from = output * pitch() + (tap * p.plan.units + c / UNIT) * UNIT + c % UNIT;
            const int64_t to = (first + output) * bank + int64_t(first_input + c) * size + first_tap + tap;
            p.parts.store(begin + to, total(gathered(), from, OUTPUTS * pitch()));
        }
        if (first_input || first_tap) return;
        for (int output = thread_index(); output < outputs; output += GROUPED_THREADS)
            p.parts.store(begin + planes * bank + first + output, total(gathered_bias(), output, OUTPUTS));
    }
};

template <class T, bool TF32, int M>
HAMLET_KERNEL(GROUPED_THREADS)
grouped_filters(HAMLET_PARAMETERS Grouped<T> parameters) {
    GroupedFilters<T, TF32, M>(parameters).run();
}

}  // namespace hamlet::cuda
