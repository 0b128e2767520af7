#include "grouped_correlation.h"

#include "grouped_launch.h"

namespace hamlet::cuda {

namespace {

void correlate(const Convolution& given, Correlation which, const char* name) {
    const Call call(given.device, given.stream);
    with_arithmetic(given, [&](auto zero, auto tf32) {
        using T = decltype(zero);
        const Grouped<T> p = grouped_of<T>(given, which);
        switch (p.plan.outputs) {
            case 8: return launch_grouped<T>(call, name, grouped_correlation<T, tf32, 1>, p.plan.output_chunks, p);
            case 16: return launch_grouped<T>(call, name, grouped_correlation<T, tf32, 2>, p.plan.output_chunks, p);
            default: return launch_grouped<T>(call, name, grouped_correlation<T, tf32, 4>, p.plan.output_chunks, p);
        }
    });
}

}  // namespace

void grouped_forward(const Convolution& given) { correlate(given, Correlation::output, "grouped forward"); }

void grouped_backward_input(const Convolution& given) {
    correlate(given, Correlation::input_gradient, "grouped backward to the input");
}

int grouped_segments(const Convolution& given) {
    const DeviceLimits limits = limits_of_device(given.device);
    auto plan = [&](Correlation which) { return plan_of(grouped_shape_of(given, which), which, limits); };
    const GroupedPlan filters = plan(Correlation::filters_gradient);
    const bool fits = filters.fits && plan(Correlation::output).fits && plan(Correlation::input_gradient).fits;
    return fits ? filters.segments : 0;
}

}  // namespace hamlet::cuda
