// Dynamic convolution backward: the input's gradient is a correlation of the output's with the filters turned round; where
// a stride left pixels out, the output's gradient has zeros between.
#include <vector>

#include "convolution.h"

namespace hamlet::HAMLET_ISA {
namespace {

template <class T>
struct Workspace {
    Plane<T> input, grad, zeros;
    std::vector<Plane<T>> inputs, grads;
    std::vector<Target<T>> targets;
    std::vector<Buffer<T>> scratch;
    Buffer<T> filters, unfinished;
};

template <class T>
Workspace<T>& workspace() {
    static thread_local Workspace<T> own;
    return own;
}

template <class T>
Vector<T> sum_of_pixels(const Plane<T>& plane, int64_t height) {
    Vector<T> total = {};
    for (int64_t y = 0; y < height; ++y)
        for (int64_t vector = 0; vector < plane.vectors; ++vector) total += load(plane.row(y) + vector * LANES<T>);
    return total;
}

template <class T>
void write_bias(const Convolution& c, const Channels& channels, Vector<T> total) {
    if (!c.d_bias) return;
    const int64_t offset = channels.sample * c.d_bias.stride[0] + channels.first * c.d_bias.stride[1];
    if (!channels.in_lanes) return write_one<T>(c.d_bias, offset, sum<T>(total));
    for (int64_t lane = 0; lane < channels.lanes; ++lane) write_one<T>(c.d_bias, offset + lane, total[lane]);
}

template <class T, int K>
void depthwise(const Convolution& c) {
    for_each_plane<T>(c, [&](const Channels& channels) {
        const Size valid = valid_size(c, channels.sample);
        const int64_t dilation = dilation_of(c, channels.sample, channels.first, valid), padding = K / 2 * dilation;
        Workspace<T>& work = workspace<T>();
        work.input.make(valid.height, valid.width, 0, channels.in_lanes);
        work.input.read(c.input, channels, valid, 1);
        work.grad.make(valid.height, valid.width, padding, channels.in_lanes);
        work.grad.read(c.grad, channels, valid, 1);
        work.zeros.make(1, valid.width, padding, channels.in_lanes);
        work.zeros.read(c.grad, channels, {0, 0}, 1);
        Vector<T> filters[K * K], d_filters[K * K];
        read_filters<T, K>(c, channels, true, filters);
        const Target<T> target(c.d_input, channels, valid, 1, work.grad.vectors, work.unfinished);
        correlate_backward<T, K>(work.grad, work.input, work.zeros.row(0), valid.height, dilation, filters, target, d_filters);
        target.finish();
        for (int tap = 0; tap < K * K; ++tap)
            for (int64_t lane = 0; lane < channels.lanes; ++lane)
                write_one<T>(c.d_weight,
                             channels.sample * c.d_weight.stride[0] + (channels.first + lane) * c.d_weight.stride[1] + tap,
                             channels.in_lanes ? d_filters[tap][lane] : sum<T>(d_filters[tap]));
        write_bias<T>(c, channels, sum_of_pixels(work.grad, valid.height));
    });
}

template <class T, int OUTPUTS, int INPUTS>
void write_weights(const Convolution& c, int64_t sample, int64_t output, int64_t o, int64_t i, int64_t height,
                   int64_t dilation, const Workspace<T>& work) {
    const int rows = int(c.weight.size[3]), columns = int(c.weight.size[4]);
    for (int tap = 0; tap < rows * columns; ++tap) {
        const int64_t down = (tap / columns - rows / 2) * dilation, right = (tap % columns - columns / 2) * dilation;
        T sums[OUTPUTS][INPUTS];
        pair_up<T, OUTPUTS, INPUTS>(&work.grads[o], &work.inputs[i], height, down, right, sums);
        for (int a = 0; a < OUTPUTS; ++a)
            for (int b = 0; b < INPUTS; ++b)
                write_one<T>(c.d_weight, filter_offset<T>(c, sample, output + o + a, i + b) + tap, sums[a][b]);
    }
}

template <class T>
void grouped(const Convolution& c) {
    constexpr int SIDE = VECTOR_REGISTERS == 32 ? 4 : 2;
    const int64_t inputs = c.weight.size[2], outputs = c.weight.size[1] / c.groups;
    parallel_for(c.threads, c.input.size[0] * c.groups, [&](int64_t item) {
        const int64_t sample = item / c.groups, group = item % c.groups;
        const Size valid = valid_size(c, sample), result = shrunk(valid, c.stride);
        const int64_t dilation = dilation_of(c, sample, group, valid), padding = c.weight.size[4] / 2 * dilation;
        Workspace<T>& work = workspace<T>();
        work.inputs.resize(inputs);
        work.grads.resize(outputs);
        work.targets.clear();
        work.scratch.resize(inputs);
        for (int64_t i = 0; i < inputs; ++i) {
            const Channels channels{sample, group * inputs + i, 1, false};
            work.inputs[i].make(valid.height, valid.width, padding, false);
            work.inputs[i].read(c.input, channels, valid, 1);
            work.targets.emplace_back(c.d_input, channels, valid, 1, work.inputs[i].vectors, work.scratch[i]);
        }
        for (int64_t o = 0; o < outputs; ++o) {
            const Channels channels{sample, group * outputs + o, 1, false};
            work.grads[o].make(valid.height, valid.width, padding, false);
            work.grads[o].read(c.grad, channels, result, c.stride);
            write_bias<T>(c, channels, sum_of_pixels(work.grads[o], valid.height));
        }
        const Filters<T> filters =
            read_filters(c, sample, group * outputs, outputs, inputs, dilation, true, work.filters);
        correlate<T>(work.grads.data(), filters, valid.height, 1, nullptr, work.targets.data());
        for (const Target<T>& target : work.targets) target.finish();
        for (int64_t o = 0; o < outputs;) {
            const int64_t several = o + SIDE <= outputs ? SIDE : 1;
            for (int64_t i = 0; i < inputs;) {
                const bool square = several == SIDE && i + SIDE <= inputs;
                if (square) write_weights<T, SIDE, SIDE>(c, sample, group * outputs, o, i, valid.height, dilation, work);
                else
                    for (int64_t a = 0; a < several; ++a)
                        write_weights<T, 1, 1>(c, sample, group * outputs, o + a, i, valid.height, dilation, work);
                i += square ? SIDE : 1;
            }
            o += several;
        }
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

void convolution_backward(const Convolution& convolution) {
    if (convolution.input.dtype == DType::float64) run<double>(convolution);
    else run<float>(convolution);
}

}  // namespace hamlet::HAMLET_ISA
