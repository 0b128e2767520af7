// What the forward and the backward of the convolution share: how the work is cut, and what a sample brings along.
#pragma once

#include "depthwise.h"
#include "kernels.h"
#include "parallel.h"
#include "scratch.h"
#include "stencil.h"

namespace hamlet::HAMLET_ISA {

inline Size size_of(const View& image) { return {image.size[2], image.size[3]}; }

// Pixels of a sample that hold something: (height, width) of the image, or of its extent.
inline Size valid_size(const Convolution& c, int64_t sample) {
    if (!c.extent) return size_of(c.input);
    const int64_t* values = reinterpret_cast<const int64_t*>(c.extent.data) + 2 * sample;
    return {values[0], values[1]};
}

// A dilation that takes every tap but the middle one out of the image is as good as any greater one.
inline int64_t dilation_of(const Convolution& c, int64_t sample, int64_t group, Size valid) {
    const int64_t blocks = c.dilation.size[1], block = group / (c.groups / blocks);
    const int64_t* values = reinterpret_cast<const int64_t*>(c.dilation.data);
    return std::min(values[sample * c.dilation.stride[0] + block * c.dilation.stride[1]],
                    std::max(valid.height, valid.width));
}

template <class T>
inline T bias_of(const Convolution& c, int64_t sample, int64_t channel) {
    return c.bias ? read_one<T>(c.bias, sample * c.bias.stride[0] + channel * c.bias.stride[1]) : T(0);
}

// Whether every channel has its own filter.
inline bool is_depthwise(const Convolution& c) { return c.weight.size[2] == 1 && c.weight.size[1] == c.groups; }

// Whether that filter is one of those that go down the columns of a plane.
inline bool is_small(const Convolution& c) {
    const int64_t kernel = c.weight.size[3];
    return c.stride == 1 && kernel == c.weight.size[4] && (kernel == 1 || kernel == 3 || kernel == 5);
}

// Planes of one sample and one block of dilations, worked at by one thread.
struct Strip {
    int64_t sample, first, planes;

    int64_t offset(const View& image, int64_t plane) const {
        return sample * image.stride[0] + (first + plane) * image.stride[1];
    }
};

template <class Run>
inline void for_each_strip(const Convolution& c, const Run& run) {
    constexpr int64_t ELEMENTS = 32768;  // of a strip, which is otherwise too short to be worth handing out
    const int64_t blocks = c.dilation.size[1], in_block = c.groups / blocks;
    const int64_t size = std::max<int64_t>(1, c.input.size[2] * c.input.size[3]);
    const int64_t at_once = std::clamp<int64_t>(ELEMENTS / size, 1, 256), strips = ceiling(in_block, at_once);
    parallel_for(c.threads, c.input.size[0] * blocks * strips, [&](int64_t item) {
        const int64_t sample = item / (blocks * strips), block = item / strips % blocks, first = item % strips * at_once;
        run(Strip{sample, block * in_block + first, std::min(at_once, in_block - first)});
    });
}

// Call `run(sample, first, count)` for groups that are worked at together: two cache lines of channels where those of a
// pixel lie together. A thread goes on with the next ones, which it has asked for.
template <class T, class Run>
inline void for_each_bundle(const Convolution& c, const Run& run) {
    const int64_t narrowest = std::max<int64_t>(1, std::min(c.weight.size[2], c.weight.size[1] / c.groups));
    const int64_t most = c.channels_last ? ceiling(2 * LANES<T>, narrowest) : 1, bundles = ceiling(c.groups, most);
    const int64_t in_turn = std::clamp<int64_t>(c.input.size[0] * bundles / (8 * c.threads), 1, 16);
    const int64_t turns = ceiling(bundles, in_turn);
    parallel_for(c.threads, c.input.size[0] * turns, [&](int64_t item) {
        const int64_t sample = item / turns, begin = item % turns * in_turn;
        for (int64_t bundle = begin; bundle < std::min(begin + in_turn, bundles); ++bundle)
            run(sample, bundle * most, std::min(most, c.groups - bundle * most));
    });
}

// The table for a key, of the few last ones that this thread made.
template <class Table, class Key>
inline const Table& table_of(const Key& key) {
    constexpr size_t KEPT = 16;
    static thread_local std::vector<Table> kept(KEPT);
    static thread_local size_t oldest = 0;
    for (const Table& table : kept)
        if (table.is_for(key)) return table;
    Table& table = kept[oldest++ % KEPT];
    table.make(key);
    return table;
}

template <class T>
inline const Columns<T>& columns_of(const Convolution& c, const Strip& strip) {
    const Size valid = valid_size(c, strip.sample);
    return table_of<Columns<T>>(
        Walk{size_of(c.input), valid, dilation_of(c, strip.sample, strip.first, valid), c.weight.size[3]});
}

template <class T>
inline const Stencil<T>& stencil_of(const StencilKey& key) {
    return table_of<Stencil<T>>(key);
}

// One vector a tap of each plane. `flipped` turns the filters round; the residual is one more of the middle tap.
template <class T>
inline const Vector<T>* read_filters(const Convolution& c, const Strip& strip, bool flipped) {
    static thread_local Buffer<T> read, vectors;
    const int64_t taps = c.weight.size[3] * c.weight.size[4];
    T* values = read.room(strip.planes * taps);
    read_row(c.weight, strip.sample * c.weight.stride[0] + strip.first * taps, values, strip.planes * taps);
    Vector<T>* filters = reinterpret_cast<Vector<T>*>(vectors.room(strip.planes * taps * LANES<T>));
    for (int64_t plane = 0; plane < strip.planes; ++plane, values += taps)
        for (int64_t tap = 0; tap < taps; ++tap)
            filters[plane * taps + tap] = broadcast(values[flipped ? taps - 1 - tap : tap] +
                                                    (c.residual && tap == taps / 2 ? T(1) : T(0)));
    return filters;
}

template <class S>
S* plane_of(const View& image, const Strip& strip, int64_t plane) {
    return reinterpret_cast<S*>(image.data) + strip.offset(image, plane);
}

// Correlate a plane of a strip with its filter; zeros beyond what holds something.
template <class T, class S, int K>
inline void correlate(const Columns<T>& walk, const Strip& strip, int64_t plane, const View& from, const View& to,
                      const Vector<T>* filters, T bias) {
    S* target = plane_of<S>(to, strip, plane);
    correlate_plane<T, S, K>(walk, walk.body.size(), plane_of<const S>(from, strip, plane), target, from.stride[1],
                             filters + plane * K * K, broadcast(bias));
    walk.clear_below(target);
}

}  // namespace hamlet::HAMLET_ISA
