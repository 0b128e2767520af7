// What the forward and the backward of the convolution share: how the work is cut.
#pragma once

#include "depthwise.h"
#include "grouped.h"

namespace hamlet::HAMLET_ISA {

// Whether every channel has its own square filter, stride 1: then planes need no others.
inline bool is_depthwise(const Convolution& c) {
    const int64_t kernel = c.weight.size[3];
    return c.stride == 1 && c.weight.size[2] == 1 && c.weight.size[1] == c.groups && kernel == c.weight.size[4] &&
           (kernel == 1 || kernel == 3 || kernel == 5);
}

// Call `run` with each of the depthwise planes: channels of one sample and one block of dilations.
template <class T, class Run>
inline void for_each_plane(const Convolution& c, const Run& run) {
    constexpr int64_t AT_ONCE = 8;  // planes an item, which is otherwise too short to be worth handing out
    const int64_t blocks = c.dilation.size[1], in_block = c.groups / blocks;
    const int64_t lanes = c.channels_last ? LANES<T> : 1;
    const int64_t planes = ceiling(in_block, lanes), items = ceiling(planes, AT_ONCE);
    parallel_for(c.threads, c.input.size[0] * blocks * items, [&](int64_t item) {
        const int64_t sample = item / (blocks * items), block = item / items % blocks;
        const int64_t first = item % items * AT_ONCE;
        for (int64_t plane = first; plane < std::min(first + AT_ONCE, planes); ++plane)
            run(Channels{sample, block * in_block + plane * lanes,
                         std::min(lanes, in_block - plane * lanes), c.channels_last});
    });
}

inline Size shrunk(Size size, int64_t stride) { return {ceiling(size.height, stride), ceiling(size.width, stride)}; }

template <class T>
inline T bias_of(const Convolution& c, int64_t sample, int64_t channel) {
    return c.bias ? read_one<T>(c.bias, sample * c.bias.stride[0] + channel * c.bias.stride[1]) : T(0);
}

}  // namespace hamlet::HAMLET_ISA
