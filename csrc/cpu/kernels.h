// The kernels of one instruction set, and what they take. Sizes and strides are checked by the caller.
#pragma once

#include <vector>

#include "../view.h"

namespace hamlet {

// Queries of one level. Views are (B, H, W, N, channels) with a channel stride of 1; gradients are absent in a forward.
struct QueryLevel {
    View query, out;          // out: written by the forward; the gradient of the output in a backward
    View d_query;             // accumulation dtype where several pairs add to it
    View extent;              // int64 (B, 2), contiguous, or absent
};

struct KeyLevel {
    View key, value, d_key, d_value;
    View extent;
};

// Queries of one level on keys of another. Views are (B, H, W, N) on the queries' grid.
struct Pair {
    int level = 0, source = 0;
    double max_radius = 0;
    View radius, gate;        // any floating dtype, any strides, absent: max_radius, 1
    View lse;                 // written by the forward, read by the backward
    View d_lse, d_radius, d_gate;
};

struct Attention {
    std::vector<QueryLevel> levels;
    std::vector<KeyLevel> sources;
    std::vector<Pair> pairs;  // in the order in which they are summed
    double softness = 1, scale = 1;
    int threads = 1;
};

// Images are (B, C, H, W), all of them contiguous or all channels_last; weights are contiguous.
struct Convolution {
    View input, weight, bias, output;
    View grad, d_input, d_weight, d_bias;  // of a backward; bias and d_bias are (B, Cout)
    View dilation;                         // int64 (B, T)
    View extent;                           // int64 (B, 2), contiguous, or absent
    int stride = 1, groups = 1;
    bool residual = false, channels_last = false;
    int threads = 1;
};

struct Kernels {
    const char* name;
    void (*attention_forward)(const Attention&);
    void (*attention_backward)(const Attention&);
    void (*convolution_forward)(const Convolution&);
    void (*convolution_backward)(const Convolution&);
    double (*multiply_adds)(int threads, int64_t items);  // returns the operations, two to a multiply-add
};

}  // namespace hamlet
