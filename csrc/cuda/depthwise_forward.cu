#include "depthwise_launch.h"

namespace hamlet::cuda {

void depthwise_forward(const Convolution& convolution) {
    const Call call(convolution.device, convolution.stream);
    with_type(convolution.input.dtype, [&](auto zero) {
        launch_depthwise<decltype(zero), false>(call, depthwise_of<decltype(zero)>(convolution, false));
    });
}

int depthwise_segments(const Convolution& convolution) {
    const DeviceLimits limits = limits_of_device(convolution.device);
    const DepthwisePlan plan = plan_depthwise(shape_of(convolution, true), limits);
    return plan.fits && plan_depthwise(shape_of(convolution, false), limits).fits ? plan.segments : 0;
}

int shared_bytes_of_device(int device) { return limits_of_device(device).shared_bytes; }

const char* device_type() { return DEVICE_TYPE; }

}  // namespace hamlet::cuda
