// The kernels of one instruction set, and what they take. Sizes and strides are checked by the caller.
#pragma once

#include <algorithm>
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

// How many threads a call is worth: to wake another takes about as long as so many multiply-adds.
inline int threads_worth(double multiply_adds, int threads) {
    constexpr double OF_WAKING = 1 << 18;
    return int(std::clamp(multiply_adds / OF_WAKING, 1.0, double(std::max(threads, 1))));
}

// Of a forward, about.
inline double multiply_adds_of(const Attention& attention) {
    double sum = 0;
    for (const Pair& pair : attention.pairs) {
        const View &query = attention.levels[pair.level].query, &key = attention.sources[pair.source].key;
        const double across = 2 * (pair.max_radius + attention.softness);
        const double keys = std::min(across, double(key.size[1])) * std::min(across, double(key.size[2]));
        sum += double(query.size[0] * query.size[3]) * double(query.size[1] * query.size[2]) * keys *
               double(query.size[4] + attention.sources[pair.source].value.size[4]);
    }
    return sum;
}

inline double multiply_adds_of(const Convolution& convolution) {
    const View &image = convolution.output ? convolution.output : convolution.grad, &weight = convolution.weight;
    return double(image.size[0] * image.size[1]) * double(image.size[2] * image.size[3]) *
           double(weight.size[2] * weight.size[3] * weight.size[4]);
}

struct Kernels {
    const char* name;
    void (*attention_forward)(const Attention&);
    void (*attention_backward)(const Attention&);
    void (*convolution_forward)(const Convolution&);
    void (*convolution_backward)(const Convolution&);
    double (*multiply_adds)(int threads, int64_t items);  // returns the operations, two to a multiply-add
};

}  // namespace hamlet
