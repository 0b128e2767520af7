// The channels of a group as flat grids, one for each phase of the stride: the image itself where it is one already.
#pragma once

#include "kernels.h"
#include "scratch.h"
#include "stencil.h"

namespace hamlet::HAMLET_ISA {

// Channels [first, first + count) of one sample.
struct Group {
    int64_t sample, first, count;

    int64_t offset(const View& image, int64_t channel, int64_t y, int64_t x) const {
        return sample * image.stride[0] + (first + channel) * image.stride[1] + y * image.stride[2] + x * image.stride[3];
    }
};

template <class S>
struct Grids {
    S* data;
    int64_t channel;  // elements between channels

    S* of(int64_t index) const { return data + index * channel; }
};

inline bool lies_flat(const View& image, int64_t stride) { return stride == 1 && image.stride[3] == 1; }

template <class S>
inline Grids<S> in_place(const View& image, const Group& group) {
    return {reinterpret_cast<S*>(image.data) + group.offset(image, 0, 0, 0), image.stride[1]};
}

// Call `run(offset in the image, phase, place in its grid)` for every pixel, all channels of a group at once.
template <class Run>
inline void for_each_pixel(const View& image, const Group& group, int64_t stride, Size grid, const Run& run) {
    for (int64_t y = 0; y < image.size[2]; ++y)
        for (int64_t x = 0; x < image.size[3]; ++x)
            run(group.offset(image, 0, y, x), y % stride * stride + x % stride, y / stride * grid.width + x / stride);
}

template <class T>
inline Grids<T> scratch_grids(const Group& group, int64_t stride, Size grid, Buffer<T>& buffer) {
    const int64_t channel = stride * stride * grid.height * grid.width;
    return {buffer.room(group.count * channel + LANES<T>), channel};
}

template <class T>
inline void gather(const View& image, const Group& group, int64_t stride, Size grid, const Grids<T>& to) {
    for_each_pixel(image, group, stride, grid, [&](int64_t offset, int64_t phase, int64_t place) {
        T* at = to.data + phase * grid.height * grid.width + place;
        for (int64_t channel = 0; channel < group.count; ++channel, at += to.channel)
            *at = read_one<T>(image, offset + channel * image.stride[1]);
    });
}

template <class T>
inline void scatter(const Grids<T>& from, const View& image, const Group& group, int64_t stride, Size grid) {
    for_each_pixel(image, group, stride, grid, [&](int64_t offset, int64_t phase, int64_t place) {
        const T* at = from.data + phase * grid.height * grid.width + place;
        for (int64_t channel = 0; channel < group.count; ++channel, at += from.channel)
            write_one<T>(image, offset + channel * image.stride[1], *at);
    });
}

}  // namespace hamlet::HAMLET_ISA
