// Dynamic convolution backward. Whatever is loaded of a plane serves both gradients while it is in the nearest cache.
#include "convolution.h"
#include "correlations.h"

namespace hamlet::HAMLET_ISA {

HAMLET_CORRELATIONS(extern)

namespace {

template <class T, class S, int K>
void weigh(const Columns<T>& walk, const S* input, const S* grad, int64_t ahead, int64_t column, Vector<T>* sums) {
    // More taps than these have no room in the registers at once.
    constexpr int AT_ONCE = K * K + 2 * K < VECTOR_REGISTERS ? K : (VECTOR_REGISTERS - K - 2) / K;
    if constexpr (AT_ONCE >= K) weigh_down<T, S, K, 0, K>(walk, column, input, grad, ahead, sums);
    else if constexpr (2 * AT_ONCE >= K) {
        weigh_down<T, S, K, 0, AT_ONCE>(walk, column, input, grad, ahead, sums);
        weigh_down<T, S, K, AT_ONCE, K - AT_ONCE>(walk, column, input, grad, ahead, sums);
    } else {
        [&]<int... X>(std::integer_sequence<int, X...>) {
            (weigh_down<T, S, K, X, 1>(walk, column, input, grad, ahead, sums), ...);
        }(std::make_integer_sequence<int, K>());
    }
}

template <class T, class S, int K>
void depthwise(const Convolution& c) {
    for_each_strip(c, [&](const Strip& strip) {
        const Columns<T>& walk = columns_of<T>(c, strip);
        const Vector<T>* const filters = read_filters<T>(c, strip, true);
        for (int64_t plane = 0; plane < strip.planes; ++plane) {
            correlate<T, S, K>(walk, strip, plane, c.grad, c.d_input, filters, T(0));
            const S* const grad = plane_of<const S>(c.grad, strip, plane);
            Vector<T> sums[K * K] = {}, total = {};
            for (size_t column = 0; column < walk.body.size(); ++column) {
                weigh<T, S, K>(walk, plane_of<const S>(c.input, strip, plane), grad, c.input.stride[1], column, sums);
                if (c.d_bias) total += sum_down(walk, column, grad);
            }
            for (int tap = 0; tap < K * K; ++tap)
                write_one<T>(c.d_weight, strip.offset(c.d_weight, plane) + tap, sum<T>(sums[tap]));
            if (c.d_bias) write_one<T>(c.d_bias, strip.offset(c.d_bias, plane), sum<T>(total));
        }
    });
}

// The gradients of a chunk's filters and biases, from totals [tap][channel], those of the bias last.
template <class T>
void write_totals(const Convolution& c, const Chunk& chunk, const T* totals) {
    const int64_t taps = c.weight.size[3] * c.weight.size[4];
    for (int64_t channel = 0; channel < chunk.channels; ++channel) {
        const T* own = totals + channel;
        const auto offset = [&](const View& view) {
            return chunk.sample * view.stride[0] + (chunk.first + channel) * view.stride[1];
        };
        for (int64_t tap = 0; tap < taps; ++tap, own += ChunkFilters<T>::PITCH)
            write_one<T>(c.d_weight, offset(c.d_weight) + tap, *own);
        if (c.d_bias) write_one<T>(c.d_bias, offset(c.d_bias), *own);
    }
}

template <class T, class S, int VECTORS, bool WHOLE>
void weigh_chunk(const Convolution& c, const Chunk& chunk, Mask<T> mask) {
    static thread_local Buffer<T> buffer;
    const int64_t size = filters_size<T>(c);
    T* const totals = buffer.room(size);
    std::fill_n(totals, size, T(0));
    const Pixels<const S> grad = pixels_of<const S>(c.grad, chunk), input = pixels_of<const S>(c.input, chunk);
    const Taps& taps = table_of<Taps>(taps_key(c, chunk, false));
    switch (c.weight.size[4]) {
        case 3: weigh_rows<T, S, 3, VECTORS, WHOLE>(taps, input, grad, totals, mask); break;
        case 5: weigh_rows<T, S, 5, VECTORS, WHOLE>(taps, input, grad, totals, mask); break;
        default: weigh_rows<T, S, 0, VECTORS, WHOLE>(taps, input, grad, totals, mask);
    }
    if (c.d_bias) sum_rows<T, S, VECTORS, WHOLE>(taps, grad, totals + size - ChunkFilters<T>::PITCH, mask);
    write_totals(c, chunk, totals);
}

template <class T, class S>
void depthwise_channels_last(const Convolution& c) {
    std::vector<Chunk> chunks;
    for (int64_t sample = 0; sample < c.input.size[0]; ++sample)
        for (const Chunk& chunk : chunks_of<T>(c, sample)) chunks.push_back(chunk);
    parallel_for(c.threads, int64_t(chunks.size()), [&](int64_t item) {
        with_vectors<T>(chunks[item].channels, [&]<int VECTORS, bool WHOLE>(Mask<T> mask) {
            weigh_chunk<T, S, VECTORS, WHOLE>(c, chunks[item], mask);
        });
        correlate_rows<T, S>(c, {&chunks[item], 1}, c.grad, c.d_input, true, 0, c.d_input.size[2]);
    });
}

template <class T>
void weight_gradients(const Convolution& c, const Stencil<T>& stencil, const Grids<T>& inputs, const Grids<T>& grads,
                      const Channels& to) {
    static thread_local Buffer<T> buffer;
    const int64_t from = c.weight.size[2], taps = c.weight.size[3] * c.weight.size[4], pitch = from * taps;
    int64_t output = 0;
    const auto weigh = [&]<int OUTPUTS>(std::integral_constant<int, OUTPUTS>) {
        T* const totals = buffer.room(OUTPUTS * pitch);
        for (; output + OUTPUTS <= to.count; output += OUTPUTS) {
            for (int64_t input = 0; input < from; ++input)
                weigh_channel<T, OUTPUTS>(stencil, inputs.of(input), grads.from(output), totals + input * taps, pitch);
            write_row(c.d_weight, to.sample * c.d_weight.stride[0] + (to.first + output) * c.d_weight.stride[1], totals,
                      OUTPUTS * pitch);
        }
    };
    if constexpr (VECTOR_REGISTERS == 32) weigh(std::integral_constant<int, 8>{});
    // The sums of so many outputs end in one vector.
    weigh(std::integral_constant<int, std::min(4, LANES<T>)>{});
    weigh(std::integral_constant<int, 1>{});
}

template <class T>
void bias_gradients(const Convolution& c, const Stencil<T>& stencil, const Grids<T>& grads, const Channels& to) {
    for (int64_t o = 0; c.d_bias && o < to.count; ++o) {
        Vector<T> total = {};
        for (int64_t spot = 0; spot < stencil.spots; ++spot)
            total += load_where(grads.of(o) + spot * LANES<T>, stencil.target(spot));
        write_one<T>(c.d_bias, to.sample * c.d_bias.stride[0] + (to.first + o) * c.d_bias.stride[1], sum<T>(total));
    }
}

// The input's gradient, phase by phase of the stride.
template <class T>
void input_gradients(const Convolution& c, StencilKey key, const GroupFilters<T>& filters, const Grids<T>& grads,
                     const Grids<T>& targets) {
    for (key.phase_y = 0; key.phase_y < c.stride; ++key.phase_y)
        for (key.phase_x = 0; key.phase_x < c.stride; ++key.phase_x) {
            Grids<T> phase = targets;
            phase.data += (key.phase_y * c.stride + key.phase_x) * key.grid.height * key.grid.width;
            correlate<T>(stencil_of<T>(key), filters, nullptr, grads, phase);
        }
}

template <class T>
void grouped(const Convolution& c) {
    const int64_t inputs = c.weight.size[2], outputs = c.weight.size[1] / c.groups;
    const Size grid = size_of(c.grad);
    for_each_bundle<T>(c, [&](int64_t sample, int64_t first, int64_t count) {
        static thread_local Buffer<T> inputs_buffer, grads_buffer, unfinished;
        const Size valid = valid_size(c, sample);
        const Channels from{sample, first * inputs, count * inputs}, to{sample, first * outputs, count * outputs};
        const Grids<T> sources = readable_grids<T>(c.input, from, c.stride, grid, inputs_buffer);
        const Grids<T> grads = readable_grids<T>(c.grad, to, 1, grid, grads_buffer);
        const Grids<T> targets = writable_grids<T>(c.d_input, from, c.stride, grid, unfinished);
        for (int64_t i = 0; i < count; ++i) {
            const StencilKey key{grid, valid, c.weight.size[3], c.weight.size[4],
                                 dilation_of(c, sample, first + i, valid), c.stride, -1, -1};
            const Channels own{sample, (first + i) * outputs, outputs};
            const Grids<T> own_grads = grads.from(i * outputs);
            const Stencil<T>& stencil = stencil_of<T>(key);
            weight_gradients(c, stencil, sources.from(i * inputs), own_grads, own);
            bias_gradients(c, stencil, own_grads, own);
            const GroupFilters<T> filters = read_group<T>(c, sample, own.first, outputs, inputs, true);
            input_gradients(c, key, filters, own_grads, targets.from(i * inputs));
        }
        scatter_back(targets, c.d_input, from, c.stride, grid);
    });
}

template <class T>
void run(const Convolution& c) {
    with_storage<T>(c.input.dtype, [&](auto* storage) {
        using S = std::remove_pointer_t<decltype(storage)>;
        if (!is_depthwise(c)) return grouped<T>(c);
        if (c.channels_last) return depthwise_channels_last<T, S>(c);
        if (!is_small(c)) return grouped<T>(c);
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
