#include "binding.h"

#include "../binding.h"
#include "kernels.h"

namespace hamlet::cuda {

namespace {

template <class Result, Result (*run)(const Convolution&)>
Result run_convolution(py::handle input, py::handle weight, py::handle bias, py::handle output, py::handle grad,
                       py::handle d_input, py::handle d_weight, py::handle d_bias, py::handle parts,
                       py::handle dilation, py::handle extent, std::vector<int> steps, int greatest, int stride,
                       bool residual, bool channels_last, bool tf32, int device, uintptr_t stream) {
    const Convolution convolution{view_of(input),    view_of(weight),  view_of(bias),     view_of(output),
                                  view_of(grad),     view_of(d_input), view_of(d_weight), view_of(d_bias),
                                  view_of(parts),    integers_of(dilation), integers_of(extent), std::move(steps),
                                  greatest,          stride,           residual,          channels_last,
                                  tf32,              device,           stream};
    const py::gil_scoped_release unlocked;
    return run(convolution);
}

Attention attention_of(const py::dict& given) {
    Attention attention;
    const std::pair<const char*, View*> views[] = {
        {"query", &attention.query},         {"key", &attention.key},
        {"value", &attention.value},         {"out", &attention.out},
        {"radius", &attention.radius},       {"gate", &attention.gate},
        {"lse", &attention.lse},             {"grad_lse", &attention.grad_lse},
        {"d_query", &attention.d_query},     {"d_key", &attention.d_key},
        {"d_value", &attention.d_value},     {"d_radius", &attention.d_radius},
        {"d_gate", &attention.d_gate},       {"summaries", &attention.summaries},
        {"largest", &attention.largest}};
    for (const auto& [name, view] : views)
        if (given.contains(name)) *view = view_of(given[name]);
    attention.query_extent = integers_of(given["query_extent"]);
    attention.key_extent = integers_of(given["key_extent"]);
    return attention;
}

template <void (*run)(const Attention&)>
void run_attention(const py::dict& tensors, float max_radius, float softness, float scale, bool tf32, int device,
                   uintptr_t stream) {
    Attention attention = attention_of(tensors);
    attention.max_radius = max_radius, attention.softness = softness, attention.scale = scale;
    attention.tf32 = tf32, attention.device = device, attention.stream = stream;
    const py::gil_scoped_release unlocked;
    run(attention);
}

}  // namespace

void bind(py::module_ module) {
    module.def("depthwise_segments", &run_convolution<int, &depthwise_segments>);
    module.def("depthwise_forward", &run_convolution<void, &depthwise_forward>);
    module.def("depthwise_backward", &run_convolution<void, &depthwise_backward>);
    module.def("grouped_segments", &run_convolution<int, &grouped_segments>);
    module.def("grouped_forward", &run_convolution<void, &grouped_forward>);
    module.def("grouped_backward_input", &run_convolution<void, &grouped_backward_input>);
    module.def("grouped_backward_filters", &run_convolution<void, &grouped_backward_filters>);
    module.def("attention_forward", &run_attention<&attention_forward>);
    module.def("attention_backward_queries", &run_attention<&attention_backward_queries>);
    module.def("attention_backward_keys", &run_attention<&attention_backward_keys>);
    module.def("attention_shared_bytes", &attention_shared_bytes);
    module.def("shared_bytes_of_device", &shared_bytes_of_device);
    module.attr("device_type") = device_type();
}

}  // namespace hamlet::cuda
