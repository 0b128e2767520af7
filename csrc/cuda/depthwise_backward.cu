#include "depthwise_launch.h"
#include "parts.h"

namespace hamlet::cuda {

void depthwise_backward(const Convolution& convolution) {
    const Call call(convolution.device, convolution.stream);
    with_type(convolution.input.dtype, [&](auto zero) {
        using T = decltype(zero);
        const Depthwise<T> p = depthwise_of<T>(convolution, true);
        launch_depthwise<T, true>(call, p);
        sum_parts(call, convolution, p.plan.segments);
    });
}

}  // namespace hamlet::cuda
