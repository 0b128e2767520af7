// Tensors as Python hands them over.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "view.h"

namespace hamlet {

namespace py = pybind11;

inline PyObject* item_of(PyObject* tuple, Py_ssize_t index) {
    if (PyObject* item = PyTuple_GetItem(tuple, index)) return item;
    throw py::error_already_set();
}

inline void read_integers(PyObject* tuple, int64_t* into) {
    const Py_ssize_t count = PyTuple_Size(tuple);
    if (count > MAX_DIMENSIONS) throw std::invalid_argument("a view has at most 5 dimensions");
    for (Py_ssize_t i = 0; i < count; ++i) into[i] = PyLong_AsLongLong(item_of(tuple, i));
}

// (address, sizes, strides in elements, dtype code), or None for a tensor that is absent. Read with CPython's own
// functions: pybind11's casts take longer than a small call's kernel.
inline View view_of(py::handle given) {
    View view;
    if (given.is_none()) return view;
    view.data = static_cast<char*>(PyLong_AsVoidPtr(item_of(given.ptr(), 0)));
    read_integers(item_of(given.ptr(), 1), view.size);
    read_integers(item_of(given.ptr(), 2), view.stride);
    view.dtype = DType(PyLong_AsLong(item_of(given.ptr(), 3)));
    if (PyErr_Occurred()) throw py::error_already_set();
    return view;
}

}  // namespace hamlet
