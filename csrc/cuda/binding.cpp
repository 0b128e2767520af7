#include "binding.h"

#include "../binding.h"
#include "kernels.h"

namespace hamlet::cuda {

namespace {

template <class Result, Result (*run)(const Convolution&)>
Result run_convolution(py::handle input, py::handle weight, py::handle bias, py::handle output, py::handle grad,
                       py::handle d_input, py::handle d_weight, py::handle d_bias, py::handle parts,
                       py::handle dilation, py::handle extent, std::vector<int> steps, int greatest, int stride,
                       bool residual, bool channels_last, int device, uintptr_t stream) {
    const Convolution convolution{view_of(input),    view_of(weight),  view_of(bias),     view_of(output),
                                  view_of(grad),     view_of(d_input), view_of(d_weight), view_of(d_bias),
                                  view_of(parts),    view_of(dilation), view_of(extent),  std::move(steps),
                                  greatest,          stride,           residual,          channels_last,
                                  device,            stream};
    const py::gil_scoped_release unlocked;
    return run(convolution);
}

}  // namespace

void bind(py::module_ module) {
    module.def("depthwise_segments", &run_convolution<int, &depthwise_segments>);
    module.def("depthwise_forward", &run_convolution<void, &depthwise_forward>);
    module.def("depthwise_backward", &run_convolution<void, &depthwise_backward>);
    module.attr("device_type") = device_type();
}

}  // namespace hamlet::cuda
