// Dynamic convolution forward.
#include "convolution.h"
#include "grouped.h"

namespace hamlet::HAMLET_ISA {
namespace {

template <class T, class S, int K>
void depthwise(const Convolution& c) {
    for_each_strip<T>(c, [&](const Strip& strip) {
        const Columns<T>& walk = columns_of<T>(c, strip);
        const Vector<T>*const filters = read_filters<T>(c, strip, false), *const biases = read_bias<T>(c, strip);
        for (int64_t plane = 0; plane < strip.planes; ++plane)
            correlate<T, S, K>(walk, strip, plane, c.input, c.output, filters, biases);
    });
}

template <class T, class S>
void grouped(const Convolution& c) {
    const int64_t inputs = c.weight.size[2], outputs = c.weight.size[1] / c.groups;
    const bool flat = lies_flat(c.input, c.stride), flat_output = c.output.stride[3] == 1;
    parallel_for(c.threads, c.input.size[0] * c.groups, [&](int64_t item) {
        static thread_local Buffer<T> gathered, unfinished, biases;
        const int64_t sample = item / c.groups, group = item % c.groups;
        const Size valid = valid_size(c, sample), grid = size_of(c.output);
        const Group from{sample, group * inputs, inputs}, to{sample, group * outputs, outputs};
        const Stencil<T>& stencil = stencil_of<T>({grid, valid, c.weight.size[3], c.weight.size[4],
                                                   dilation_of(c, sample, group, valid), c.stride, -1, -1});
        const GroupFilters<T> filters = read_group<T>(c, sample, group * outputs, outputs, inputs, false);
        T* bias = biases.room(outputs);
        for (int64_t o = 0; o < outputs; ++o) bias[o] = bias_of<T>(c, sample, group * outputs + o);
        const auto run = [&](const auto& sources) {
            if (flat_output) return correlate(stencil, filters, bias, sources, in_place<S>(c.output, to));
            const Grids<T> targets = scratch_grids<T>(to, 1, grid, unfinished);
            correlate(stencil, filters, bias, sources, targets);
            scatter(targets, c.output, to, 1, grid);
        };
        if (flat) return run(in_place<S>(c.input, from));
        const Grids<T> sources = scratch_grids<T>(from, c.stride, grid, gathered);
        gather(c.input, from, c.stride, grid, sources);
        run(sources);
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

void convolution_forward(const Convolution& convolution) {
    if (convolution.input.dtype == DType::float64) run<double>(convolution);
    else run<float>(convolution);
}

}  // namespace hamlet::HAMLET_ISA
