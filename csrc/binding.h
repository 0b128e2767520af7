// Tensors as Python hands them over.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include <pybind11/gil_safe_call_once.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "dlpack.h"
#include "view.h"

namespace hamlet {

namespace py = pybind11;

inline const dlpack::Exchange* find_exchange() {
    const py::object tensor = py::module_::import("torch").attr("Tensor");
    const py::object capsule = tensor.attr("__dlpack_c_exchange_api__");
    const auto* found = static_cast<const dlpack::Exchange*>(PyCapsule_GetPointer(capsule.ptr(), dlpack::CAPSULE));
    if (!found) throw py::error_already_set();
    while (found && found->major != dlpack::MAJOR) found = found->older;
    if (!found || !found->tensor_of) throw std::runtime_error("this torch lends no tensors by DLPack, version 1");
    return found;
}

inline const dlpack::Exchange& exchange() {
    PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<const dlpack::Exchange*> found;
    return *found.call_once_and_store_result(find_exchange).get_stored();
}

inline DType dtype_of(const dlpack::Tensor& tensor) {
    if (tensor.code == dlpack::FLOAT && tensor.bits == 32) return DType::float32;
    if (tensor.code == dlpack::FLOAT && tensor.bits == 64) return DType::float64;
    if (tensor.code == dlpack::BFLOAT && tensor.bits == 16) return DType::bfloat16;
    if (tensor.code == dlpack::FLOAT && tensor.bits == 16) return DType::float16;
    throw std::invalid_argument("no kernel takes tensors of DLPack's dtype " + std::to_string(tensor.code) + " with " +
                                std::to_string(tensor.bits) + " bits");
}

// By DLPack, since reading a tensor's attributes in Python takes longer than a small call's kernel, and torch's own headers
// would tie the module to one version.
inline dlpack::Tensor tensor_of(py::handle given) {
    dlpack::Tensor tensor;
    if (exchange().tensor_of(given.ptr(), &tensor) != 0) throw py::error_already_set();
    if (tensor.dimensions > MAX_DIMENSIONS) throw std::invalid_argument("a tensor has at most 5 dimensions");
    return tensor;
}

inline View view_without_dtype(const dlpack::Tensor& tensor) {
    View view;
    view.data = tensor.data + tensor.byte_offset;
    std::copy_n(tensor.size, tensor.dimensions, view.size);
    std::copy_n(tensor.stride, tensor.dimensions, view.stride);
    return view;
}

// A tensor of torch, or None for one that is absent.
inline View view_of(py::handle given) {
    if (given.is_none()) return {};
    const dlpack::Tensor tensor = tensor_of(given);
    View view = view_without_dtype(tensor);
    view.dtype = dtype_of(tensor);
    return view;
}

// The same for extents and dilations, which are int64.
inline View integers_of(py::handle given) {
    if (given.is_none()) return {};
    const dlpack::Tensor tensor = tensor_of(given);
    if (tensor.code != dlpack::INTEGER || tensor.bits != 64) throw std::invalid_argument("extents and dilations are int64");
    return view_without_dtype(tensor);
}

}  // namespace hamlet
