// The Python module of the kernels executed on the CPU, which only the tests build; they look at the geometry too.
#include <pybind11/stl.h>

#include "../binding.h"
#include "../depthwise.h"
#include "../grouped_tiles.h"
#include "../window.h"

namespace {

namespace py = pybind11;
using namespace hamlet::cuda;

py::dict depthwise_plan_of(const DepthwiseShape& shape, int shared_bytes, int multiprocessors) {
    const DepthwisePlan plan = plan_depthwise(shape, {shared_bytes, multiprocessors});
    using namespace py::literals;
    return py::dict("fits"_a = plan.fits, "rows"_a = plan.rows, "lanes"_a = plan.lanes, "vectors"_a = plan.vectors,
                    "chunk"_a = plan.chunk, "threads"_a = plan.threads, "shared_bytes"_a = plan.shared_bytes,
                    "chunks"_a = plan.chunks, "segments"_a = plan.segments, "pitch"_a = plan.pitch);
}

py::dict grouped_plan_of(const GroupedPlan& plan) {
    using namespace py::literals;
    return py::dict("fits"_a = plan.fits, "outputs"_a = plan.outputs, "output_chunks"_a = plan.output_chunks,
                    "units"_a = plan.units, "chunks"_a = plan.chunks, "taps"_a = plan.taps,
                    "tap_ranges"_a = plan.tap_ranges, "capacity"_a = plan.capacity, "plane"_a = plan.plane,
                    "across"_a = plan.across, "resident"_a = plan.resident, "shared_bytes"_a = plan.shared_bytes,
                    "segments"_a = plan.segments);
}

// The cut that the lanes of a warp find, found one after the other.
Cut best_cut_of(const GroupedShape& shape, int capacity, int step) {
    int best = 0;
    for (int which = 1; which < CUTS; ++which)
        if (cost(cut_of(shape, capacity, step, which), which) < cost(cut_of(shape, capacity, step, best), best))
            best = which;
    return cut_of(shape, capacity, step, best);
}

// The positions of the target that each tile has, and how many pixels of the source are staged for one.
std::pair<std::vector<std::vector<std::pair<int, int>>>, int> tiles_of(const GroupedShape& shape, int capacity,
                                                                        int step) {
    const Cut cut = best_cut_of(shape, capacity, step);
    std::vector<std::vector<std::pair<int, int>>> tiles(cut.tiles());
    for (int tile = 0; tile < cut.tiles(); ++tile) {
        Corner corner{cut, step, tile};
        for (int i = 0; i < cut.pieces * cut.piece_pixels(); ++i) {
            const int within = i % cut.piece_pixels(), columns = cut.across.length;
            corner.move(i / cut.piece_pixels());
            if (corner.exists)
                tiles[tile].emplace_back(corner.y + within / columns * step, corner.x + within % columns * step);
        }
    }
    return {tiles, cut.pieces * cut.staged};
}

}  // namespace

PYBIND11_MODULE(cuda_on_cpu, module) {
    bind(module);
    // Whether the device has a bulk copy engine, and how many boxes it copied.
    module.def("set_bulk_copies", [](bool has) { bulk_copies = has; });
    module.def("boxes_copied", [] { return boxes_copied; });
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
    module.def("plan_depthwise", &depthwise_plan_of);
    py::class_<GroupedShape>(module, "GroupedShape", py::module_local())
        .def(py::init<>())
        .def_readwrite("itemsize", &GroupedShape::itemsize)
        .def_readwrite("filter_height", &GroupedShape::filter_height)
        .def_readwrite("filter_width", &GroupedShape::filter_width)
        .def_readwrite("skip", &GroupedShape::skip)
        .def_readwrite("inputs", &GroupedShape::inputs)
        .def_readwrite("outputs", &GroupedShape::outputs)
        .def_readwrite("target_height", &GroupedShape::target_height)
        .def_readwrite("target_width", &GroupedShape::target_width)
        .def_readwrite("samples", &GroupedShape::samples)
        .def_readwrite("groups", &GroupedShape::groups);
    module.def("plan_grouped", [](const GroupedShape& shape, bool filters, int shared_bytes, int multiprocessors) {
        const DeviceLimits limits{shared_bytes, multiprocessors};
        return grouped_plan_of(filters ? plan_filters_gradient(shape, limits) : plan_correlation(shape, limits));
    });
    module.def("grouped_tiles", &tiles_of);
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
