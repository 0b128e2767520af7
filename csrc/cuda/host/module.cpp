// The Python module of the kernels executed on the CPU, which only the tests build; they look at the geometry too.
#include <pybind11/stl.h>

#include "../binding.h"
#include "../depthwise.h"
#include "../window.h"

namespace {

namespace py = pybind11;
using namespace hamlet::cuda;

py::dict plan_of(const DepthwiseShape& shape, int shared_bytes, int multiprocessors) {
    const DepthwisePlan plan = plan_depthwise(shape, {shared_bytes, multiprocessors});
    using namespace py::literals;
    return py::dict("fits"_a = plan.fits, "rows"_a = plan.rows, "lanes"_a = plan.lanes, "vectors"_a = plan.vectors,
                    "chunk"_a = plan.chunk, "threads"_a = plan.threads, "shared_bytes"_a = plan.shared_bytes,
                    "chunks"_a = plan.chunks, "segments"_a = plan.segments, "pitch"_a = plan.pitch);
}

}  // namespace

PYBIND11_MODULE(cuda_on_cpu, module) {
    bind(module);
    py::class_<DepthwiseShape>(module, "DepthwiseShape", py::module_local())
        .def(py::init<>())
        .def_readwrite("channels_last", &DepthwiseShape::channels_last)
        .def_readwrite("backward", &DepthwiseShape::backward)
        .def_readwrite("itemsize", &DepthwiseShape::itemsize)
        .def_readwrite("filter_height", &DepthwiseShape::filter_height)
        .def_readwrite("filter_width", &DepthwiseShape::filter_width)
        .def_readwrite("skip", &DepthwiseShape::skip)
        .def_readwrite("source_width", &DepthwiseShape::source_width)
        .def_readwrite("target_height", &DepthwiseShape::target_height)
        .def_readwrite("target_width", &DepthwiseShape::target_width)
        .def_readwrite("samples", &DepthwiseShape::samples)
        .def_readwrite("blocks", &DepthwiseShape::blocks)
        .def_readwrite("channels", &DepthwiseShape::channels);
    module.def("plan_depthwise", &plan_of);
    // The positions of each tile of an axis.
    module.def("walk", [](int size, int step, int most, int multiple) {
        const Walk walk(size, step, most, multiple);
        std::vector<std::vector<int>> tiles(walk.tiles());
        for (int tile = 0; tile < walk.tiles(); ++tile)
            for (int i = 0; i < walk.length; ++i) tiles[tile].push_back(walk.start(tile, step) + i * step);
        return tiles;
    });
    // The pixels of each step over a box, row by row.
    module.def("steps", [](int top, int left, int height, int width) {
        const Steps<32> steps(Box{{top, top + height}, {left, left + width}});
        std::vector<std::vector<std::pair<int, int>>> found(steps.number);
        for (int step = 0; step < steps.number; ++step) {
            const Box region = steps.region(step);
            for (int y = region.y.first; y < region.y.end; ++y)
                for (int x = region.x.first; x < region.x.end; ++x) found[step].emplace_back(y, x);
        }
        return found;
    });
    module.def("centre", [](int query, int queries, int keys) { return Axis(queries, keys).centre(float(query)); });
    module.def("covered", [](float first, float last, int size) {
        const Span span = covered(first, last, size);
        return std::pair(span.first, span.end);
    });
}
