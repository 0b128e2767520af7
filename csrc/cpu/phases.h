// The channels of some groups as flat grids, one for each phase of the stride: the image itself where it is one already.
#pragma once

#include "kernels.h"
#include "scratch.h"
#include "stencil.h"

namespace hamlet::HAMLET_ISA {

// Channels [first, first + count) of one sample.
struct Channels {
    int64_t sample, first, count;
};

template <class T>
struct Grids {
    T* data;
    int64_t channel;  // elements between channels

    T* of(int64_t index) const { return data + index * channel; }
    Grids from(int64_t index) const { return {of(index), channel}; }
};

// Whether a channel lies in one piece. The stride of a dimension of one element says nothing.
inline bool has_planes(const View& image) {
    return (image.size[3] == 1 || image.stride[3] == 1) && (image.size[2] == 1 || image.stride[2] == image.size[3]);
}

template <class T>
inline bool lies_flat(const View& image, int64_t stride) {
    constexpr DType own = sizeof(T) == 8 ? DType::float64 : DType::float32;
    return stride == 1 && has_planes(image) && image.dtype == own;
}

template <class S>
inline S* start_of(const View& image, const Channels& channels) {
    return reinterpret_cast<S*>(image.data) + channels.sample * image.stride[0] + channels.first * image.stride[1];
}

template <class T>
inline Grids<T> in_place(const View& image, const Channels& channels) {
    return {start_of<T>(image, channels), image.stride[1]};
}

template <class T>
inline Grids<T> scratch_grids(const Channels& channels, int64_t stride, Size grid, Buffer<T>& buffer) {
    const int64_t channel = stride * stride * grid.height * grid.width;
    return {buffer.room(channels.count * channel + LANES<T>), channel};
}

// Call `run(y, x, place)` for every row of every phase: its first pixel, and where that lies in a channel's grids.
template <class Run>
inline void for_each_phase_row(Size image, int64_t stride, Size grid, const Run& run) {
    for (int64_t y = 0; y < image.height; ++y)
        for (int64_t x = 0; x < std::min(stride, image.width); ++x)
            run(y, x, ((y % stride * stride + x) * grid.height + y / stride) * grid.width);
}

// Call `run(x, even, odd, left)` along row y of an image in phases of 2, two vectors of pixels at a time: of the `left` ones
// from x on, those at even columns lie in a channel's grids from `even` on, those at odd columns from `odd` on.
template <class T, class Run>
inline void for_each_alternation(Size image, int64_t y, Size grid, const Run& run) {
    const int64_t even = (y % 2 * 2 * grid.height + y / 2) * grid.width, odd = even + grid.height * grid.width;
    for (int64_t x = 0; x < image.width; x += 2 * LANES<T>) run(x, even + x / 2, odd + x / 2, image.width - x);
}

// Masks for the first `count` of what two vectors hold, one after the other, and alternately.
template <class T>
struct TwoVectors {
    Mask<T> first, second, even, odd;

    explicit TwoVectors(int64_t count)
        : first(first_lanes<T>(count)),
          second(first_lanes<T>(std::max<int64_t>(count - LANES<T>, 0))),
          even(first_lanes<T>((count + 1) / 2)),
          odd(first_lanes<T>(count / 2)) {}
};

template <class T, class S>
void gather_planes(const View& image, const Channels& channels, int64_t stride, Size grid, const Grids<T>& to) {
    const Size size{image.size[2], image.size[3]};
    for (int64_t channel = 0; channel < channels.count; ++channel) {
        const S* const from = start_of<const S>(image, channels) + channel * image.stride[1];
        T* const phases = to.of(channel);
        if (stride == 1) {
            read_padded<T>(from, size.height * size.width, phases);
            continue;
        }
        for (int64_t y = 0; y < size.height; ++y)
            for_each_alternation<T>(size, y, grid, [&](int64_t x, int64_t even, int64_t odd, int64_t left) {
                const TwoVectors<T> masks(left);
                const S* const at = from + y * size.width + x;
                Vector<T> a = load_where(at, masks.first), b = load_where(at + LANES<T>, masks.second);
                separate<T>(a, b);
                store_where(phases + even, a, masks.even);
                store_where(phases + odd, b, masks.odd);
            });
    }
}

template <class T, class S>
void scatter_planes(const Grids<T>& from, const View& image, const Channels& channels, int64_t stride, Size grid) {
    const Size size{image.size[2], image.size[3]};
    for (int64_t channel = 0; channel < channels.count; ++channel) {
        S* const to = start_of<S>(image, channels) + channel * image.stride[1];
        const T* const phases = from.of(channel);
        if (stride == 1) {
            write_first(phases, size.height * size.width, to);
            continue;
        }
        for (int64_t y = 0; y < size.height; ++y)
            for_each_alternation<T>(size, y, grid, [&](int64_t x, int64_t even, int64_t odd, int64_t left) {
                const TwoVectors<T> masks(left);
                Vector<T> a = load_where(phases + even, masks.even), b = load_where(phases + odd, masks.odd);
                interleave<T>(a, b);
                S* const at = to + y * size.width + x;
                store_where(at, a, masks.first);
                store_where(at + LANES<T>, b, masks.second);
            });
    }
}

// Where the channels of a pixel lie together: call `run(element of the image, step to the next pixel, channel, place in
// its grids, pixels, channels)` for squares of pixels and channels, to be turned over.
template <class T, class Run>
void for_each_square(const View& image, const Channels& channels, int64_t stride, Size grid, const Run& run) {
    const bool whole = stride == 1;  // all rows are one
    const Size size = whole ? Size{1, image.size[2] * image.size[3]} : Size{image.size[2], image.size[3]};
    const int64_t pitch = image.size[3] > 1 ? image.stride[3] : image.stride[2];
    for_each_phase_row(size, stride, grid, [&](int64_t y, int64_t x, int64_t place) {
        for (; x < size.width; x += stride * LANES<T>, place += LANES<T>) {
            const int64_t pixels = std::min<int64_t>(LANES<T>, ceiling(size.width - x, stride));
            for (int64_t channel = 0; channel < channels.count; channel += LANES<T>)
                run((y * size.width + x) * pitch + channel, stride * pitch, channel, place, pixels,
                    std::min<int64_t>(LANES<T>, channels.count - channel));
        }
    });
}

template <class T, class S>
void gather_pixels(const View& image, const Channels& channels, int64_t stride, Size grid, const Grids<T>& to) {
    const S* const from = start_of<const S>(image, channels);
    for_each_square<T>(image, channels, stride, grid, [&](int64_t element, int64_t step, int64_t channel, int64_t place,
                                                          int64_t pixels, int64_t count) {
        Vector<T> square[LANES<T>] = {};
        for (int64_t i = 0; i < pixels; ++i) {
            const S* const pixel = from + element + i * step;
            // Of the next square: a processor looks ahead within a page of memory, which holds few of these pixels.
            __builtin_prefetch(pixel + LANES<T> * step);
            square[i] = load_where(pixel, first_lanes<T>(count));
        }
        transpose_square<T>(square);
        for (int64_t i = 0; i < count; ++i) store_first(to.of(channel + i) + place, square[i], pixels);
    });
}

template <class T, class S>
void scatter_pixels(const Grids<T>& from, const View& image, const Channels& channels, int64_t stride, Size grid) {
    S* const to = start_of<S>(image, channels);
    for_each_square<T>(image, channels, stride, grid, [&](int64_t element, int64_t step, int64_t channel, int64_t place,
                                                          int64_t pixels, int64_t count) {
        Vector<T> square[LANES<T>] = {};
        for (int64_t i = 0; i < count; ++i) square[i] = load_first(from.of(channel + i) + place, pixels);
        transpose_square<T>(square);
        for (int64_t i = 0; i < pixels; ++i) {
            S* const pixel = to + element + i * step;
            __builtin_prefetch(pixel + LANES<T> * step, 1);
            store_where(pixel, square[i], first_lanes<T>(count));
        }
    });
}

template <class T>
void gather(const View& image, const Channels& channels, int64_t stride, Size grid, const Grids<T>& to) {
    with_storage<T>(image.dtype, [&](auto* storage) {
        using S = std::remove_pointer_t<decltype(storage)>;
        if (has_planes(image)) gather_planes<T, S>(image, channels, stride, grid, to);
        else gather_pixels<T, S>(image, channels, stride, grid, to);
    });
}

template <class T>
void scatter(const Grids<T>& from, const View& image, const Channels& channels, int64_t stride, Size grid) {
    with_storage<T>(image.dtype, [&](auto* storage) {
        using S = std::remove_pointer_t<decltype(storage)>;
        if (has_planes(image)) scatter_planes<T, S>(from, image, channels, stride, grid);
        else scatter_pixels<T, S>(from, image, channels, stride, grid);
    });
}

// To read from: the image itself, or its channels gathered.
template <class T>
Grids<T> readable_grids(const View& image, const Channels& channels, int64_t stride, Size grid, Buffer<T>& buffer) {
    if (lies_flat<T>(image, stride)) return in_place<T>(image, channels);
    const Grids<T> grids = scratch_grids<T>(channels, stride, grid, buffer);
    gather(image, channels, stride, grid, grids);
    return grids;
}

// To write to, then `scatter_back`.
template <class T>
Grids<T> writable_grids(const View& image, const Channels& channels, int64_t stride, Size grid, Buffer<T>& buffer) {
    if (lies_flat<T>(image, stride)) return in_place<T>(image, channels);
    return scratch_grids<T>(channels, stride, grid, buffer);
}

template <class T>
void scatter_back(const Grids<T>& grids, const View& image, const Channels& channels, int64_t stride, Size grid) {
    if (!lies_flat<T>(image, stride)) scatter(grids, image, channels, stride, grid);
}

}  // namespace hamlet::HAMLET_ISA
