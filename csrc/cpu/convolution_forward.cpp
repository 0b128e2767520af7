// Dynamic convolution forward.
#include "convolution.h"
#include "correlations.h"

namespace hamlet::HAMLET_ISA {

HAMLET_CORRELATIONS()

namespace {

template <class T, class S, int K>
void depthwise(const Convolution& c) {
    for_each_strip(c, [&](const Strip& strip) {
        const Columns<T>& walk = columns_of<T>(c, strip);
        const Vector<T>* const filters = read_filters<T>(c, strip, false);
        for (int64_t plane = 0; plane < strip.planes; ++plane)
            correlate<T, S, K>(walk, strip, plane, c.input, c.output, filters,
                               bias_of<T>(c, strip.sample, strip.first + plane));
    });
}

template <class T, class S>
void depthwise_channels_last(const Convolution& c) {
    const int64_t samples = c.output.size[0], height = c.output.size[2];
    const int64_t parts = parts_of(samples, std::max<int64_t>(height, 1), 4 * c.threads);
    parallel_for(c.threads, samples * parts, [&](int64_t item) {
        const int64_t part = item % parts;
        correlate_rows<T, S>(c, chunks_of<T>(c, item / parts), c.input, c.output, false, height * part / parts,
                             height * (part + 1) / parts);
    });
}

template <class T>
void grouped(const Convolution& c) {
    const int64_t inputs = c.weight.size[2], outputs = c.weight.size[1] / c.groups;
    const Size grid = size_of(c.output);
    for_each_bundle<T>(c, [&](int64_t sample, int64_t first, int64_t count) {
        static thread_local Buffer<T> gathered, unfinished, biases;
        const Size valid = valid_size(c, sample);
        const Channels from{sample, first * inputs, count * inputs}, to{sample, first * outputs, count * outputs};
        const Grids<T> sources = readable_grids<T>(c.input, from, c.stride, grid, gathered);
        const Grids<T> targets = writable_grids<T>(c.output, to, 1, grid, unfinished);
        T* const bias = biases.room(to.count);
        for (int64_t o = 0; o < to.count; ++o) bias[o] = bias_of<T>(c, sample, to.first + o);
        for (int64_t i = 0; i < count; ++i) {
            const Stencil<T>& stencil =
                stencil_of<T>({grid, valid, c.weight.size[3], c.weight.size[4],
                               dilation_of(c, sample, first + i, valid), c.stride, -1, -1});
            const GroupFilters<T> filters = read_group<T>(c, sample, (first + i) * outputs, outputs, inputs, false);
            correlate(stencil, filters, bias + i * outputs, sources.from(i * inputs), targets.from(i * outputs));
        }
        scatter_back(targets, c.output, to, 1, grid);
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

void convolution_forward(const Convolution& convolution) {
    if (convolution.input.dtype == DType::float64) run<double>(convolution);
    else run<float>(convolution);
}

}  // namespace hamlet::HAMLET_ISA
