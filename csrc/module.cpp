// The Python module hamlet._native: tensors in, nothing out. Everything is checked before, in Python.
#include "binding.h"
#include "cpu/isa.h"
#include "cuda/binding.h"

namespace py = pybind11;

namespace {

using namespace hamlet;

Attention attention_of(const py::list& levels, const py::list& sources, const py::list& pairs, double softness,
                       double scale, int threads) {
    Attention attention;
    attention.softness = softness;
    attention.scale = scale;
    for (py::handle item : levels) {
        const auto level = py::reinterpret_borrow<py::tuple>(item);
        attention.levels.push_back({view_of(level[0]), view_of(level[1]), view_of(level[2]), integers_of(level[3])});
    }
    for (py::handle item : sources) {
        const auto source = py::reinterpret_borrow<py::tuple>(item);
        attention.sources.push_back(
            {view_of(source[0]), view_of(source[1]), view_of(source[2]), view_of(source[3]), integers_of(source[4])});
    }
    for (py::handle item : pairs) {
        const auto pair = py::reinterpret_borrow<py::tuple>(item);
        attention.pairs.push_back({pair[0].cast<int>(), pair[1].cast<int>(), pair[2].cast<double>(), view_of(pair[3]),
                                   view_of(pair[4]), view_of(pair[5]), view_of(pair[6]), view_of(pair[7]),
                                   view_of(pair[8])});
    }
    attention.threads = threads_worth(multiply_adds_of(attention), threads);
    return attention;
}

template <void (*Kernels::*kernel)(const Attention&)>
void run_attention(const py::list& levels, const py::list& sources, const py::list& pairs, double softness,
                   double scale, int threads) {
    const Attention attention = attention_of(levels, sources, pairs, softness, scale, threads);
    const py::gil_scoped_release unlocked;
    (kernels().*kernel)(attention);
}

template <void (*Kernels::*kernel)(const Convolution&)>
void run_convolution(py::handle input, py::handle weight, py::handle bias, py::handle output, py::handle grad,
                     py::handle d_input, py::handle d_weight, py::handle d_bias, py::handle dilation,
                     py::handle extent, int stride, int groups, bool residual, bool channels_last, int threads) {
    Convolution convolution{view_of(input),    view_of(weight),  view_of(bias),     view_of(output),
                            view_of(grad),     view_of(d_input), view_of(d_weight), view_of(d_bias),
                            integers_of(dilation), integers_of(extent), stride, groups,
                            residual,          channels_last};
    convolution.threads = threads_worth(multiply_adds_of(convolution), threads);
    const py::gil_scoped_release unlocked;
    (kernels().*kernel)(convolution);
}

double multiply_adds(int threads, int64_t items) {
    const py::gil_scoped_release unlocked;
    return kernels().multiply_adds(threads, items);
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    exchange();  // an error here is why the module is missing; later it would be every call's
    module.def("instruction_sets", &instruction_sets);
    module.def("instruction_set", [] { return kernels().name; });
    module.def("use_instruction_set", &use_instruction_set);
    module.def("attention_forward", &run_attention<&Kernels::attention_forward>);
    module.def("attention_backward", &run_attention<&Kernels::attention_backward>);
    module.def("convolution_forward", &run_convolution<&Kernels::convolution_forward>);
    module.def("convolution_backward", &run_convolution<&Kernels::convolution_backward>);
    module.def("multiply_adds", &multiply_adds);
#if defined(HAMLET_CUDA_WHY_NOT)
    module.attr("why_no_cuda") = HAMLET_CUDA_WHY_NOT;
#else
    cuda::bind(module.def_submodule("cuda"));
    module.attr("cuda").attr("architectures") = HAMLET_CUDA_ARCHS;
#endif
}
