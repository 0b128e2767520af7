#pragma once

#include <pybind11/pybind11.h>

namespace hamlet::cuda {

// Gives a module the kernels as functions, those for the device or, in the tests, those executed on the CPU.
void bind(pybind11::module_ module);

}  // namespace hamlet::cuda
