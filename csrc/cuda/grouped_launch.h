// A convolution as the grouped kernels take it.
#pragma once

#include "grouped.h"
#include "image_launch.h"

namespace hamlet::cuda {

// Which of the three that make a convolution and its gradients.
enum class Correlation { output, input_gradient, filters_gradient };

inline GroupedShape grouped_shape_of(const Convolution& given, Correlation which) {
    const View &input = given.input, &weight = given.weight;
    const bool turned = which == Correlation::input_gradient;
    GroupedShape shape;
    shape.itemsize = element_size(input.dtype);
    shape.filter_height = int(weight.size[3]), shape.filter_width = int(weight.size[4]);
    shape.skip = turned ? 1 : given.stride;
    shape.samples = int(input.size[0]);
    shape.groups = int(input.size[1] / weight.size[2]);
    shape.inputs = int(weight.size[2]), shape.outputs = int(weight.size[1]) / shape.groups;
    if (turned) std::swap(shape.inputs, shape.outputs);
    shape.target_height = int(ceiling(input.size[2], shape.skip));
    shape.target_width = int(ceiling(input.size[3], shape.skip));
    return shape;
}

inline GroupedPlan plan_of(const GroupedShape& shape, Correlation which, DeviceLimits limits) {
    return which == Correlation::filters_gradient ? plan_filters_gradient(shape, limits)
                                                  : plan_correlation(shape, limits);
}

// Whether asynchronous copies can read, and packs of as many bytes write, the channels of a group.
template <class T>
bool is_whole(const View& image, int channels) {
    constexpr int BYTES = COPY_BYTES;
    return image.stride[1] == 1 && channels % COPIED<T> == 0 && reinterpret_cast<uintptr_t>(image.data) % BYTES == 0;
}

template <class T>
Grouped<T> grouped_of(const Convolution& given, Correlation which) {
    const bool turned = which == Correlation::input_gradient, filters = which == Correlation::filters_gradient;
    const View& source = turned ? given.grad : given.input;
    const View& target = turned ? given.d_input : filters ? given.grad : given.output;
    Grouped<T> p;
    p.shape = grouped_shape_of(given, which);
    p.plan = plan_of(p.shape, which, limits_of_device(given.device));
    if (!p.plan.fits) throw std::runtime_error("grouped: a tile does not fit in shared memory");
    p.source = image_of<T>(source), p.target = image_of<T>(target);
    p.filters = global<T>(given.weight);
    p.bias = global<T>(given.bias);
    p.bias_sample = given.bias.stride[0], p.bias_channel = given.bias.stride[1];
    p.parts = global<float>(given.parts);
    p.extent = global<int64_t>(given.extent);
    p.dilations = dilations_of(given);
    p.blocks = int(given.steps.size());
    p.spread = turned ? given.stride : 1;
    p.turned = turned, p.residual = given.residual;
    p.aligned_source = given.channels_last && is_whole<T>(source, p.shape.inputs);
    // The residual is read from the source as the target is written.
    p.aligned_target = given.channels_last && is_whole<T>(target, p.shape.outputs) &&
                       (p.aligned_source || !p.residual);
    return p;
}

// Calls run(T(), tf32), the latter a constant of its type.
template <class Run>
void with_arithmetic(const Convolution& given, const Run& run) {
    with_type(given.input.dtype, [&](auto zero) {
        if constexpr (sizeof(zero) == 4)
            if (given.tf32) return run(zero, std::true_type());
        run(zero, std::false_type());
    });
}

// Starts a block for every segment of every part of every group.
template <class T>
void launch_grouped(const Call& call, const char* name, void (*kernel)(const Grouped<T>), int64_t parts,
                    const Grouped<T>& p) {
    const int64_t blocks = parts * p.shape.samples * p.shape.groups * p.plan.segments;
    if (blocks > std::numeric_limits<int>::max()) throw std::runtime_error(std::string(name) + ": too many blocks");
    call.launch(name, kernel, blocks, GROUPED_THREADS, p.plan.shared_bytes, p);
}

}  // namespace hamlet::cuda
