// A convolution as the depthwise kernels take it.
#pragma once

#include "depthwise.h"
#include "image_launch.h"

namespace hamlet::cuda {

inline DepthwiseShape shape_of(const Convolution& given, bool backward) {
    const View &input = given.input, &weight = given.weight;
    const int stride = given.stride, height = int(input.size[2]), width = int(input.size[3]);
    const int out_height = int(ceiling(height, stride)), out_width = int(ceiling(width, stride));
    DepthwiseShape shape;
    shape.channels_last = given.channels_last;
    shape.backward = backward;
    shape.itemsize = element_size(input.dtype);
    shape.filter_height = int(weight.size[3]), shape.filter_width = int(weight.size[4]);
    shape.skip = backward ? 1 : stride;
    shape.source_width = backward ? out_width : width;
    shape.target_height = backward ? height : out_height;
    shape.target_width = backward ? width : out_width;
    shape.samples = int(input.size[0]);
    shape.blocks = int(given.steps.size());
    shape.channels = int(input.size[1]) / shape.blocks;
    return shape;
}

// Whether asynchronous copies can read these images: channels_last all pixels' channels must be whole copies;
// contiguous only rows that neighbours in a tile keep apart by the dilation, not by half of it.
template <class T>
bool is_aligned(const DepthwiseShape& shape, int spread, std::initializer_list<const View*> images) {
    constexpr int BYTES = COPY_BYTES;
    if (!shape.channels_last) return spread == 1;
    if (shape.channels % COPIED<T>) return false;
    for (const View* image : images)
        if (reinterpret_cast<uintptr_t>(image->data) % BYTES) return false;
    return true;
}

// The tiles of each dilation that a block may have and the copy engine can copy. It knows of no extent, and of no zeros
// that spread the source; `cp.async` serves these, and all other dilations.
template <class T>
void set_boxes(Depthwise<T>& p, const DepthwiseShape& shape, const Convolution& given) {
    if (!p.aligned || p.spread > 1 || given.extent) return;
    const int kernel = specialised(shape.filter_height, shape.filter_width, shape.skip);
    const int together = rows_at_once(kernel, shape.channels_last, shape.backward);
    const Image<T>& source = p.source;
    const int64_t block = p.channels * source.channel;
    for (int step = 1; step <= std::min(given.greatest, MOST_APART); ++step) {
        if (!given.dilation && std::find(given.steps.begin(), given.steps.end(), step) == given.steps.end()) continue;
        const Walk down(p.target.height, step, p.plan.rows, together);
        const int rows = shape.skip * (down.length - 1) + shape.filter_height, columns = p.plan.columns;
        const Boxes boxes = shape.channels_last
            ? Boxes{{p.channels, source.width, source.height, p.blocks, p.samples},
                    {1, source.column, source.row, block, source.sample},
                    {p.plan.chunk, columns, rows, 1, 1},
                    {1, step, step, 1, 1}}
            : Boxes{{source.width, source.height, p.channels, p.blocks, p.samples},
                    {1, source.row, source.channel, block, source.sample},
                    {source.width, rows, p.plan.chunk, 1, 1},
                    {1, step, 1, 1, 1}};
        if (!engine_can_copy(boxes, (shape.backward ? given.grad : given.input).data, sizeof(T))) continue;
        p.boxes[step - 1] = tensor_map(source.data, boxes);
        p.boxed |= 1u << (step - 1);
    }
}

template <class T>
Depthwise<T> depthwise_of(const Convolution& given, bool backward) {
    const DepthwiseShape shape = shape_of(given, backward);
    Depthwise<T> p;
    const DeviceLimits limits = limits_of_device(given.device);
    p.plan = plan_depthwise(shape, limits);
    if (!p.plan.fits) throw std::runtime_error("depthwise: a tile does not fit in shared memory");
    p.source = image_of<T>(backward ? given.grad : given.input);
    p.target = image_of<T>(backward ? given.d_input : given.output);
    if (backward) p.input = image_of<T>(given.input);
    p.filters = global<T>(given.weight);
    p.bias = global<T>(given.bias);
    p.bias_sample = given.bias.stride[0], p.bias_channel = given.bias.stride[1];
    p.parts = global<float>(given.parts);
    p.dilations = dilations_of(given);
    p.extent = global<int64_t>(given.extent);
    p.samples = shape.samples, p.blocks = shape.blocks, p.channels = shape.channels;
    p.filter_height = shape.filter_height, p.filter_width = shape.filter_width;
    p.skip = shape.skip;
    p.spread = backward ? given.stride : 1;
    p.residual = given.residual;
    p.aligned = backward ? is_aligned<T>(shape, p.spread, {&given.grad, &given.d_input, &given.input})
                         : is_aligned<T>(shape, p.spread, {&given.input, &given.output});
    if (limits.bulk_copies) set_boxes(p, shape, given);
    return p;
}

template <class T, bool BACKWARD>
void launch_depthwise(const Call& call, const Depthwise<T>& p) {
    const int64_t blocks = int64_t(p.samples) * p.blocks * p.plan.chunks * p.plan.segments;
    if (blocks > std::numeric_limits<int>::max()) throw std::runtime_error("depthwise: more blocks than a grid has");
    auto with_layout = [&](auto kernel_size) {
        constexpr int K = decltype(kernel_size)::value;
        const bool last = p.plan.columns > 0;
        call.launch(BACKWARD ? "depthwise backward" : "depthwise forward",
                    last ? depthwise<T, K, true, BACKWARD> : depthwise<T, K, false, BACKWARD>, blocks, p.plan.threads,
                    p.plan.shared_bytes, p);
    };
    switch (specialised(p.filter_height, p.filter_width, p.skip)) {
        case 3: return with_layout(std::integral_constant<int, 3>());
        case 5: return with_layout(std::integral_constant<int, 5>());
        case 7: return with_layout(std::integral_constant<int, 7>());
        default: return with_layout(std::integral_constant<int, 0>());
    }
}

}  // namespace hamlet::cuda
