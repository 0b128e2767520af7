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
    bool residual = false, channels_last = false, tf32 = false;
    int device = 0;
    uintptr_t stream = 0;
};

// How many parts of the filters' gradient a backward leaves; 0 where tiles do not fit in the device's shared memory.
int depthwise_segments(const Convolution& convolution);
void depthwise_forward(const Convolution& convolution);
void depthwise_backward(const Convolution& convolution);
// The same of a convolution whose groups have any number of channels.
int grouped_segments(const Convolution& convolution);
void grouped_forward(const Convolution& convolution);
void grouped_backward_input(const Convolution& convolution);
void grouped_backward_filters(const Convolution& convolution);

// Grids are (B, H, W, heads, channels) with channels side by side, or without channels. The results are contiguous, as
// are those that are float32 (B, H, W, heads) but radius and gate.
struct Attention {
    View query, key, value, out;    // of a backward, `out` is its gradient
    View radius, gate;              // float32, may be absent
    View query_extent, key_extent;  // int64 (B, 2), contiguous, may be absent
    View lse;
    View grad_lse;                        // of a backward, may be absent
    View d_query, d_key, d_value;         // of a backward
    View d_radius, d_gate;                // of a backward, may be absent
    View summaries, largest;              // between its passes: (B, H, W, heads, 4) and (B, tiles of queries, heads)
    float max_radius = 0, softness = 1, scale = 1;
    bool tf32 = false;
    int device = 0;
    uintptr_t stream = 0;
};

void attention_forward(const Attention& attention);
// Of a backward, in this order.
void attention_backward_queries(const Attention& attention);
void attention_backward_keys(const Attention& attention);

// The shared memory that a block of threads needs; 0 where there is no kernel for so many channels.
int attention_shared_bytes(int item_bytes, int channels);
int shared_bytes_of_device(int device);

// What the kernels were built for: "cuda", or "cpu" where they are executed by host/.
const char* device_type();

}  // namespace hamlet::cuda
