// What the convolutions' kernels share of what they are given.
#pragma once

#include <limits>

#include "image.h"
#include "kernels.h"

namespace hamlet::cuda {

template <class T>
Image<T> image_of(const View& view) {
    const int64_t count = view.size[0] * view.size[1] * view.size[2] * view.size[3];
    return {global<T>(view), count, view.stride[0], view.stride[1], view.stride[2], view.stride[3], int(view.size[2]),
            int(view.size[3])};
}

inline Dilations dilations_of(const Convolution& given) {
    Dilations dilations;
    dilations.tensor = global<int64_t>(given.dilation);
    for (size_t i = 0; i < given.steps.size() && !given.dilation; ++i) dilations.steps[i] = given.steps[i];
    dilations.greatest = given.greatest;
    return dilations;
}

}  // namespace hamlet::cuda
