// The second stage of a reduction: the parts that blocks left, summed in one order, so that no atomics are needed.
#pragma once

#include "builtins.h"
#include "kernels.h"

namespace hamlet::cuda {

// Fills d_weight and, where it is there, d_bias.
void sum_parts(const Call& call, const Convolution& given, int segments);

}  // namespace hamlet::cuda
