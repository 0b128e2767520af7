#include "depthwise_launch.h"
#include "parts.h"

namespace hamlet::cuda {

void depthwise_backward(const Convolution& convolution) {
    const Call call(convolution.device, convolution.stream);
    with_type(convolution.input.dtype, [&](auto zero) {
        using T = decltype(zero);
        const Depthwise<T> p = depthwise_of<T>(convolution, true);
        launch_depthwise<T, true>(call, p);
        const int64_t planes = int64_t(p.samples) * p.blocks * p.channels;
        launch_sum_of_parts<T>(call, {p.parts, global<T>(convolution.d_weight), global<T>(convolution.d_bias),
                                      planes * p.filter_height * p.filter_width, planes, p.plan.segments});
    });
}

}  // namespace hamlet::cuda
