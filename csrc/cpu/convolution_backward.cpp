// Dynamic convolution backward. Whatever is loaded of a plane serves both gradients while it is in the nearest cache.
#include "convolution.h"
#include "grouped.h"

namespace hamlet::HAMLET_ISA {
namespace {

template <class T, class S, int K>
void weigh(const Columns<T>& walk, const S* input, const S* grad, int64_t column, Vector<T>* sums) {
    // More taps than these have no room in the registers at once.
    constexpr int AT_ONCE = K * K + 2 * K < VECTOR_REGISTERS ? K : (VECTOR_REGISTERS - K - 2) / K;
    if constexpr (AT_ONCE >= K) weigh_down<T, S, K, 0, K>(walk, column, input, grad, sums);
    else if constexpr (2 * AT_ONCE >= K) {
        weigh_down<T, S, K, 0, AT_ONCE>(walk, column, input, grad, sums);
        weigh_down<T, S, K, AT_ONCE, K - AT_ONCE>(walk, column, input, grad, sums);
    } else {
        [&]<int... X>(std::integer_sequence<int, X...>) {
            (weigh_down<T, S, K, X, 1>(walk, column, input, grad, sums), ...);
        }(std::make_integer_sequence<int, K>());
    }
}

template <class T>
void write_channels(const View& view, int64_t offset, int64_t step, const Strip& strip, Vector<T> value) {
    if (!strip.lanes) return write_one<T>(view, offset, sum<T>(value));
    for (int64_t lane = 0; lane < strip.lanes; ++lane) write_one<T>(view, offset + lane * step, value[lane]);
}

template <class T, class S, int K>
void depthwise(const Convolution& c) {
    for_each_strip<T>(c, [&](const Strip& strip) {
        const Columns<T>& walk = columns_of<T>(c, strip);
        const Vector<T>* const filters = read_filters<T>(c, strip, true);
        for (int64_t plane = 0; plane < strip.planes; ++plane) {
            correlate<T, S, K>(walk, strip, plane, c.grad, c.d_input, filters, nullptr);
            const S* const grad = plane_of<const S>(c.grad, strip, plane);
            Vector<T> sums[K * K] = {}, total = {};
            for (size_t column = 0; column < walk.body.size(); ++column) {
                weigh<T, S, K>(walk, plane_of<const S>(c.input, strip, plane), grad, column, sums);
                if (c.d_bias) total += sum_down(walk, column, grad);
            }
            const int64_t sample = strip.sample, channel = strip.channel(plane), step = c.d_weight.stride[1];
            for (int tap = 0; tap < K * K; ++tap)
                write_channels<T>(c.d_weight, sample * c.d_weight.stride[0] + channel * step + tap, step, strip, sums[tap]);
            if (c.d_bias)
                write_channels<T>(c.d_bias, sample * c.d_bias.stride[0] + channel * c.d_bias.stride[1],
                                  c.d_bias.stride[1], strip, total);
        }
    });
}

template <class T, int OUTPUTS, int INPUTS, class S, class R>
void write_weights(const Convolution& c, const Stencil<T>& stencil, const Grids<S>& inputs, const Grids<R>& grads,
                   int64_t sample, int64_t first, int64_t input, int64_t output) {
    for (size_t tap = 0; tap < stencil.taps.size(); ++tap) {
        T sums[OUTPUTS * INPUTS];
        pair_up<T, S, R, OUTPUTS, INPUTS>(stencil, tap, inputs, grads, input, output, sums);
        for (int o = 0; o < OUTPUTS; ++o)
            for (int i = 0; i < INPUTS; ++i)
                write_one<T>(c.d_weight,
                             sample * c.d_weight.stride[0] + (first + output + o) * c.d_weight.stride[1] +
                                 (input + i) * c.d_weight.stride[2] + stencil.taps[tap].index,
                             sums[o * INPUTS + i]);
    }
}

template <class T, class S, class R>
void weight_gradients(const Convolution& c, const Stencil<T>& stencil, const Grids<S>& inputs, const Grids<R>& grads,
                      const Group& from, const Group& to) {
    constexpr int OUTPUTS = LANES<T> >= 8 ? 4 : 2, INPUTS = LANES<T> / OUTPUTS;
    for (int64_t output = 0; output < to.count;) {
        const bool several = output + OUTPUTS <= to.count;
        for (int64_t input = 0; input < from.count;) {
            const bool block = several && input + INPUTS <= from.count;
            if (block) write_weights<T, OUTPUTS, INPUTS>(c, stencil, inputs, grads, to.sample, to.first, input, output);
            else
                for (int64_t o = output; o < output + (several ? OUTPUTS : 1); ++o)
                    write_weights<T, 1, 1>(c, stencil, inputs, grads, to.sample, to.first, input, o);
            input += block ? INPUTS : 1;
        }
        output += several ? OUTPUTS : 1;
    }
}

template <class T, class R>
void bias_gradients(const Convolution& c, const Stencil<T>& stencil, const Grids<R>& grads, const Group& to) {
    for (int64_t o = 0; c.d_bias && o < to.count; ++o) {
        Vector<T> total = {};
        for (int64_t spot = 0; spot < stencil.spots; ++spot)
            total += load_where(grads.of(o) + spot * LANES<T>, stencil.target(spot));
        write_one<T>(c.d_bias, to.sample * c.d_bias.stride[0] + (to.first + o) * c.d_bias.stride[1], sum<T>(total));
    }
}

// The input's gradient, phase by phase of the stride.
template <class T, class R, class Targets>
void input_gradients(const Convolution& c, StencilKey key, const GroupFilters<T>& filters, const Grids<R>& grads,
                     const Targets& targets) {
    for (key.phase_y = 0; key.phase_y < c.stride; ++key.phase_y)
        for (key.phase_x = 0; key.phase_x < c.stride; ++key.phase_x) {
            Targets phase = targets;
            phase.data += (key.phase_y * c.stride + key.phase_x) * key.grid.height * key.grid.width;
            correlate<T>(stencil_of<T>(key), filters, nullptr, grads, phase);
        }
}

template <class T, class S>
void grouped(const Convolution& c) {
    const int64_t inputs = c.weight.size[2], outputs = c.weight.size[1] / c.groups;
    const bool flat = lies_flat(c.input, c.stride), flat_grad = c.grad.stride[3] == 1;
    parallel_for(c.threads, c.input.size[0] * c.groups, [&](int64_t item) {
        static thread_local Buffer<T> inputs_buffer, grads_buffer, unfinished;
        const int64_t sample = item / c.groups, group = item % c.groups;
        const Size valid = valid_size(c, sample), grid = size_of(c.grad);
        const Group from{sample, group * inputs, inputs}, to{sample, group * outputs, outputs};
        const StencilKey key{grid, valid, c.weight.size[3], c.weight.size[4], dilation_of(c, sample, group, valid),
                             c.stride, -1, -1};
        const GroupFilters<T> filters = read_group<T>(c, sample, group * outputs, outputs, inputs, true);
        const auto run = [&](const auto& sources, const auto& grads) {
            const Stencil<T>& stencil = stencil_of<T>(key);
            weight_gradients(c, stencil, sources, grads, from, to);
            bias_gradients(c, stencil, grads, to);
            if (flat) return input_gradients(c, key, filters, grads, in_place<S>(c.d_input, from));
            const Grids<T> targets = scratch_grids<T>(from, c.stride, grid, unfinished);
            input_gradients(c, key, filters, grads, targets);
            scatter(targets, c.d_input, from, c.stride, grid);
        };
        const auto with_grads = [&](const auto& sources) {
            if (flat_grad) return run(sources, in_place<S>(c.grad, to));
            const Grids<T> grads = scratch_grids<T>(to, 1, grid, grads_buffer);
            gather(c.grad, to, 1, grid, grads);
            run(sources, grads);
        };
        if (flat) return with_grads(in_place<S>(c.input, from));
        const Grids<T> sources = scratch_grids<T>(from, c.stride, grid, inputs_buffer);
        gather(c.input, from, c.stride, grid, sources);
        with_grads(sources);
    });
}

template <class T>
void run(const Convolution& c) {
    with_storage<T>(c.input.dtype, [&](auto* storage) {
        using S = std::remove_pointer_t<decltype(storage)>;
        if (!is_depthwise(c)) return grouped<T, S>(c);
        switch (c.weight.size[3]) {
            case 1: return depthwise<T, S, 1>(c);
            case 3: return depthwise<T, S, 3>(c);
            default: return depthwise<T, S, 5>(c);
        }
    });
}

}  // namespace

void convolution_backward(const Convolution& convolution) {
    if (convolution.input.dtype == DType::float64) run<double>(convolution);
    else run<float>(convolution);
}

}  // namespace hamlet::HAMLET_ISA
