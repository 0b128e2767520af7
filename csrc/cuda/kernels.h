// What the CUDA backend offers, and what it takes. Sizes, strides and dtypes are checked by the caller.
#pragma once

#include <cstdint>
#include <vector>

#include "../view.h"

namespace hamlet::cuda {

// Images are (B, C, H, W), all of them contiguous or all channels_last; weights are contiguous.
struct Convolution {
    View input, weight, bias, output;
    View grad, d_input, d_weight, d_bias, parts;  // of a backward; bias and d_bias are (B, C), parts (segments, ...)
    View dilation;                                // int64 (B, T), or absent: `steps`
    View extent;                                  // int64 (B, 2), contiguous, or absent
    std::vector<int> steps;                       // T of them, whose values count where there is no `dilation`
    int greatest = 1, stride = 1;
    bool residual = false, channels_last = false;
    int device = 0;
    uintptr_t stream = 0;
};

// How many parts of the filters' gradient a backward leaves; 0 where tiles do not fit in the device's shared memory.
int depthwise_segments(const Convolution& convolution);
void depthwise_forward(const Convolution& convolution);
void depthwise_backward(const Convolution& convolution);

// What the kernels were built for: "cuda", or "cpu" where they are executed by host/.
const char* device_type();

}  // namespace hamlet::cuda
