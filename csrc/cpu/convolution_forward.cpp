// Dynamic convolution forward.
#include <vector>

#include "convolution.h"

namespace hamlet::HAMLET_ISA {
namespace {

template <class T>
struct Workspace {
    Plane<T> plane;
    std::vector<Plane<T>> planes;
    std::vector<Target<T>> targets;
    std::vector<Buffer<T>> scratch;
    Buffer<T> filters, bias, unfinished;
};

template <class T>
Workspace<T>& workspace() {
    static thread_local Workspace<T> own;
    return own;
}

template <class T, int K>
void depthwise(const Convolution& c) {
    for_each_plane<T>(c, [&](const Channels& channels) {
        const Size valid = valid_size(c, channels.sample);
        const int64_t dilation = dilation_of(c, channels.sample, channels.first, valid);
        Plane<T>& plane = workspace<T>().plane;
        plane.make(valid.height, valid.width, K / 2 * dilation, channels.in_lanes);
        plane.read(c.input, channels, valid, 1);
        Vector<T> filters[K * K];
        read_filters<T, K>(c, channels, false, filters);
        alignas(64) T bias[LANES<T>] = {};
        for (int64_t lane = 0; lane < LANES<T>; ++lane)
            bias[lane] = bias_of<T>(c, channels.sample, channels.first + (lane < channels.lanes ? lane : 0));
        const Target<T> target(c.output, channels, valid, 1, plane.vectors, workspace<T>().unfinished);
        correlate<T, K>(plane, valid.height, dilation, filters, load(bias), target);
        target.finish();
    });
}

template <class T>
void grouped(const Convolution& c) {
    const int64_t inputs = c.weight.size[2], outputs = c.weight.size[1] / c.groups;
    parallel_for(c.threads, c.input.size[0] * c.groups, [&](int64_t item) {
        const int64_t sample = item / c.groups, group = item % c.groups;
        const Size valid = valid_size(c, sample), result = shrunk(valid, c.stride);
        const int64_t dilation = dilation_of(c, sample, group, valid);
        Workspace<T>& work = workspace<T>();
        work.planes.resize(inputs);
        work.scratch.resize(outputs);
        work.targets.clear();
        for (int64_t i = 0; i < inputs; ++i) {
            work.planes[i].make(valid.height, valid.width, c.weight.size[4] / 2 * dilation, false);
            work.planes[i].read(c.input, {sample, group * inputs + i, 1, false}, valid, 1);
        }
        T* bias = work.bias.room(outputs);
        for (int64_t o = 0; o < outputs; ++o) {
            bias[o] = bias_of<T>(c, sample, group * outputs + o);
            work.targets.emplace_back(c.output, Channels{sample, group * outputs + o, 1, false}, result, c.stride,
                                      ceiling(valid.width, LANES<T>), work.scratch[o]);
        }
        const Filters<T> filters =
            read_filters(c, sample, group * outputs, outputs, inputs, dilation, false, work.filters);
        correlate(work.planes.data(), filters, valid.height, c.stride, bias, work.targets.data());
        for (const Target<T>& target : work.targets) target.finish();
    });
}

template <class T>
void run(const Convolution& c) {
    if (!is_depthwise(c)) return grouped<T>(c);
    switch (c.weight.size[3]) {
        case 1: return depthwise<T, 1>(c);
        case 3: return depthwise<T, 3>(c);
        default: return depthwise<T, 5>(c);
    }
}

}  // namespace

void convolution_forward(const Convolution& convolution) {
    if (convolution.input.dtype == DType::float64) run<double>(convolution);
    else run<float>(convolution);
}

}  // namespace hamlet::HAMLET_ISA
