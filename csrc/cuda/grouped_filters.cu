#include "grouped_filters.h"

#include "grouped_launch.h"
#include "parts.h"

namespace hamlet::cuda {

void grouped_backward_filters(const Convolution& given) {
    const Call call(given.device, given.stream);
    with_arithmetic(given, [&](auto zero, auto tf32) {
        using T = decltype(zero);
        const Grouped<T> p = grouped_of<T>(given, Correlation::filters_gradient);
        const int64_t parts = int64_t(p.plan.output_chunks) * p.plan.chunks * p.plan.tap_ranges;
        launch_grouped<T>(call, "grouped backward to the filters",
                          p.plan.outputs == 16 ? grouped_filters<T, tf32, 1> : grouped_filters<T, tf32, 2>, parts, p);
        sum_parts(call, given, p.plan.segments);
    });
}

}  // namespace hamlet::cuda
