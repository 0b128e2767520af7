// Products of a group of several channels, any odd kernel, any stride: flat grids against registers of sums.
#pragma once

#include "phases.h"

namespace hamlet::HAMLET_ISA {

// A group's filters, [from][tap][to], so that the sums of several channels find theirs side by side.
template <class T>
struct GroupFilters {
    const T* data;
    int64_t from, to, taps;  // channels; taps of the kernel

    const T* at(int64_t channel, int64_t tap) const { return data + (channel * taps + tap) * to; }
};

// The filters of `outputs` on `inputs` channels, or, transposed, those that give the input's gradient. The residual is one
// more of the middle tap.
template <class T>
inline GroupFilters<T> read_group(const Convolution& c, int64_t sample, int64_t first, int64_t outputs, int64_t inputs,
                                  bool transposed) {
    static thread_local Buffer<T> read, arranged;
    const int64_t taps = c.weight.size[3] * c.weight.size[4], count = outputs * inputs * taps;
    T *from = read.room(count), *to = arranged.room(count);
    read_row(c.weight, sample * c.weight.stride[0] + first * c.weight.stride[1], from, count);
    for (int64_t o = 0; o < outputs; ++o)
        for (int64_t i = 0; i < inputs; ++i)
            for (int64_t tap = 0; tap < taps; ++tap, ++from) {
                const T value = *from + (c.residual && o == i && tap == taps / 2 ? T(1) : T(0));
                to[transposed ? (o * taps + tap) * inputs + i : (i * taps + tap) * outputs + o] = value;
            }
    return {to, transposed ? outputs : inputs, transposed ? inputs : outputs, taps};
}

// sums[o][spot] of OUTPUTS channels from `first` and SPOTS vectors from `spot`, written to the targets.
template <class T, int OUTPUTS, int SPOTS>
HAMLET_INLINE void correlate_spots(const Stencil<T>& stencil, const GroupFilters<T>& filters, const T* start,
                                   const Grids<T>& sources, const Grids<T>& targets, int64_t spot, int64_t first) {
    Vector<T> sums[OUTPUTS][SPOTS];
#pragma GCC unroll 8
    for (int o = 0; o < OUTPUTS; ++o)
#pragma GCC unroll 8
        for (int i = 0; i < SPOTS; ++i) sums[o][i] = broadcast(start ? start[first + o] : T(0));
    const auto *const begin = stencil.taps.data(), *const end = begin + stencil.taps.size();
    for (int64_t channel = 0; channel < filters.from; ++channel) {
        const T* from = sources.of(channel) + spot * LANES<T>;
        const T* weights = filters.at(channel, 0) + first;
        const Mask<T>* masks = stencil.sources(0) + spot;
        // Of the group after this one.
        if (first == 0)
            for (int i = 0; i < SPOTS; ++i) __builtin_prefetch(from + filters.from * sources.channel + i * LANES<T>);
        for (const auto* tap = begin; tap != end; ++tap, masks += stencil.spots) {
            const T* at = from + tap->offset;
            const T* weight = weights + tap->index * filters.to;
            Vector<T> pixels[SPOTS];
#pragma GCC unroll 8
            for (int i = 0; i < SPOTS; ++i) pixels[i] = in_register(load_where(at + i * LANES<T>, masks[i]));
#pragma GCC unroll 8
            for (int o = 0; o < OUTPUTS; ++o) {
                const Vector<T> factor = in_register(broadcast(weight[o]));
#pragma GCC unroll 8
                for (int i = 0; i < SPOTS; ++i) sums[o][i] += factor * pixels[i];
            }
        }
    }
#pragma GCC unroll 8
    for (int o = 0; o < OUTPUTS; ++o) {
        T* to = targets.of(first + o) + spot * LANES<T>;
#pragma GCC unroll 8
        for (int i = 0; i < SPOTS; ++i) {
            __builtin_prefetch(to + filters.to * targets.channel + i * LANES<T>, 1);
            store_where(to + i * LANES<T>, zero_unless<T>(stencil.target(spot + i), sums[o][i]), stencil.inside(spot + i));
        }
    }
}

template <class T, int OUTPUTS, int SPOTS>
inline void correlate_channels(const Stencil<T>& stencil, const GroupFilters<T>& filters, const T* start,
                               const Grids<T>& sources, const Grids<T>& targets, int64_t first) {
    int64_t spot = 0;
    for (; spot + SPOTS <= stencil.spots; spot += SPOTS)
        correlate_spots<T, OUTPUTS, SPOTS>(stencil, filters, start, sources, targets, spot, first);
    for (; spot < stencil.spots; ++spot)
        correlate_spots<T, OUTPUTS, 1>(stencil, filters, start, sources, targets, spot, first);
}

template <class T>
inline void correlate(const Stencil<T>& stencil, const GroupFilters<T>& filters, const T* start, const Grids<T>& sources,
                      const Grids<T>& targets) {
    int64_t first = 0;
    if constexpr (VECTOR_REGISTERS == 32)
        for (; first + 8 <= filters.to; first += 8)
            correlate_channels<T, 8, 3>(stencil, filters, start, sources, targets, first);
    for (; first + 4 <= filters.to; first += 4)
        correlate_channels<T, 4, VECTOR_REGISTERS == 32 ? 6 : 3>(stencil, filters, start, sources, targets, first);
    for (; first < filters.to; ++first)
        correlate_channels<T, 1, 6>(stencil, filters, start, sources, targets, first);
}

// The gradients of one tap's filters, OUTPUTS x INPUTS of them: as many as a vector has lanes, which are summed together.
template <class T, int OUTPUTS, int INPUTS>
HAMLET_INLINE void pair_up(const Stencil<T>& stencil, int64_t tap, const Grids<T>& inputs, const Grids<T>& grads,
                           int64_t input, int64_t output, T (&result)[OUTPUTS * INPUTS]) {
    Vector<T> sums[OUTPUTS * INPUTS] = {};
    const int64_t offset = stencil.taps[tap].offset;
    const Mask<T>* masks = stencil.sources(tap);
    for (int64_t spot = 0; spot < stencil.spots; ++spot) {
        const Mask<T> source = masks[spot], target = stencil.target(spot);
        Vector<T> pixels[INPUTS];
#pragma GCC unroll 4
        for (int i = 0; i < INPUTS; ++i)
            pixels[i] = in_register(load_where(inputs.of(input + i) + offset + spot * LANES<T>, source));
#pragma GCC unroll 4
        for (int o = 0; o < OUTPUTS; ++o) {
            const Vector<T> grad = in_register(load_where(grads.of(output + o) + spot * LANES<T>, target));
#pragma GCC unroll 4
            for (int i = 0; i < INPUTS; ++i) sums[o * INPUTS + i] += grad * pixels[i];
        }
    }
    if constexpr (OUTPUTS * INPUTS == LANES<T>) {
        transpose_square<T>(sums);
        Vector<T> total = sums[0];
        for (int i = 1; i < LANES<T>; ++i) total += sums[i];
        store(result, total);
    } else {
        for (int i = 0; i < OUTPUTS * INPUTS; ++i) result[i] = sum<T>(sums[i]);
    }
}

}  // namespace hamlet::HAMLET_ISA
