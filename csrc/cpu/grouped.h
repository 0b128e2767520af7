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
//
// The pixels that every tap finds are KEPT in `panel`, where the channels after these find them GATHERED: aligned and masked.
template <class T, int OUTPUTS, int SPOTS, bool GATHERED, bool KEPT>
HAMLET_INLINE void correlate_spots(const Stencil<T>& stencil, const GroupFilters<T>& filters, const T* start,
                                   const Grids<T>& sources, const Grids<T>& targets, int64_t spot, int64_t first,
                                   T* panel) {
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
        if constexpr (!GATHERED)
            for (int i = 0; i < SPOTS; ++i) __builtin_prefetch(from + filters.from * sources.channel + i * LANES<T>);
        for (const auto* tap = begin; tap != end; ++tap, masks += stencil.spots, panel += SPOTS * LANES<T>) {
            const T* weight = weights + tap->index * filters.to;
            // One pointer: the compiler would compute an index for each of the weights.
            if constexpr (OUTPUTS > 1) asm("" : "+r"(weight));
            Vector<T> pixels[SPOTS];
#pragma GCC unroll 8
            for (int i = 0; i < SPOTS; ++i)
                if constexpr (GATHERED) pixels[i] = in_register(load(panel + i * LANES<T>));
                else {
                    pixels[i] = in_register(load_where(from + tap->offset + i * LANES<T>, masks[i]));
                    if constexpr (KEPT) store(panel + i * LANES<T>, pixels[i]);
                }
#pragma GCC unroll 8
            for (int o = 0; o < OUTPUTS; ++o) {
                const Vector<T> factor = in_register(broadcast(weight[o]));
#pragma GCC unroll 8
                for (int i = 0; i < SPOTS; ++i) sums[o][i] += factor * pixels[i];
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < SPOTS; ++i) {
        const Mask<T> target = stencil.target(spot + i), inside = stencil.inside(spot + i);
#pragma GCC unroll 8
        for (int o = 0; o < OUTPUTS; ++o) {
            T* const to = targets.of(first + o) + (spot + i) * LANES<T>;
            __builtin_prefetch(to + filters.to * targets.channel, 1);
            store_where(to, zero_unless<T>(target, sums[o][i]), inside);
        }
    }
}

// All channels of SPOTS vectors from `spot` on, which is moved, then of the next ones, as long as there are so many.
template <class T, int SPOTS>
inline void correlate_channels(const Stencil<T>& stencil, const GroupFilters<T>& filters, const T* start,
                               const Grids<T>& sources, const Grids<T>& targets, int64_t& spot) {
    static thread_local Buffer<T> buffer;
    T* const panel = buffer.room(filters.from * int64_t(stencil.taps.size()) * SPOTS * LANES<T>);
    for (; spot + SPOTS <= stencil.spots; spot += SPOTS) {
        int64_t first = 0;
        const auto add = [&]<int OUTPUTS>(std::integral_constant<int, OUTPUTS>) {
            const auto some = [&]<bool GATHERED, bool KEPT>() {
                correlate_spots<T, OUTPUTS, SPOTS, GATHERED, KEPT>(stencil, filters, start, sources, targets, spot, first, panel);
            };
            for (; first + OUTPUTS <= filters.to; first += OUTPUTS)
                if (first > 0) some.template operator()<true, false>();
                else if (OUTPUTS < filters.to) some.template operator()<false, true>();
                else some.template operator()<false, false>();
        };
        // As many sums as there are registers for.
        if constexpr (VECTOR_REGISTERS == 32 && SPOTS <= 3) add(std::integral_constant<int, 8>{});
        if constexpr (4 * SPOTS < VECTOR_REGISTERS) add(std::integral_constant<int, 4>{});
        add(std::integral_constant<int, 1>{});
    }
}

template <class T>
void correlate(const Stencil<T>& stencil, const GroupFilters<T>& filters, const T* start, const Grids<T>& sources,
               const Grids<T>& targets) {
    int64_t spot = 0;
    // Few outputs leave registers for more vectors.
    if (filters.to < VECTOR_REGISTERS / 4) correlate_channels<T, 6>(stencil, filters, start, sources, targets, spot);
    else correlate_channels<T, 3>(stencil, filters, start, sources, targets, spot);
    correlate_channels<T, 1>(stencil, filters, start, sources, targets, spot);
}

// to[o * pitch + tap] = the gradient of the filters of OUTPUTS channels on one of the input, for TAPS taps from `first` on.
template <class T, int OUTPUTS, int TAPS>
HAMLET_INLINE void weigh_taps(const Stencil<T>& stencil, int64_t first, const T* input, const Grids<T>& grads, T* to,
                              int64_t pitch) {
    Vector<T> sums[TAPS][OUTPUTS] = {};
    const auto* const taps = &stencil.taps[first];
    const Mask<T>* masks = stencil.sources(first);
    const T* grad = grads.data;
    const auto add = [&]<bool WHOLE>(Mask<T> target) HAMLET_INLINED {
        Vector<T> pixels[TAPS];
        const Mask<T>* mask = masks;
#pragma GCC unroll 8
        for (int i = 0; i < TAPS; ++i, mask += stencil.spots) {
            // One pointer to masks and one to gradients: the compiler would keep one for each, more than there are registers.
            asm("" : "+r"(mask));
            pixels[i] = in_register(load_where(input + taps[i].offset, *mask));
        }
        const T* from = grad;
#pragma GCC unroll 8
        for (int o = 0; o < OUTPUTS; ++o, from += grads.channel) {
            asm("" : "+r"(from));
            const Vector<T> own = in_register(WHOLE ? load(from) : load_where(from, target));
#pragma GCC unroll 8
            for (int i = 0; i < TAPS; ++i) sums[i][o] += own * pixels[i];
        }
        ++masks, input += LANES<T>, grad += LANES<T>;
    };
    int64_t spot = 0;
    for (; spot < stencil.whole; ++spot) add.template operator()<true>(stencil.target(spot));
    for (; spot < stencil.spots; ++spot) add.template operator()<false>(stencil.target(spot));
    for (int i = 0; i < TAPS; ++i) {
        alignas(64) T totals[LANES<T>];
        store(totals, sum_each<T>(sums[i]));
        for (int o = 0; o < OUTPUTS; ++o) to[o * pitch + taps[i].index] = totals[o];
    }
}

// The same for all taps: as many together as there are registers for.
template <class T, int OUTPUTS>
inline void weigh_channel(const Stencil<T>& stencil, const T* input, const Grids<T>& grads, T* to, int64_t pitch) {
    constexpr int TOGETHER = OUTPUTS == 1 ? 6 : 3;
    const int64_t count = int64_t(stencil.taps.size());
    int64_t tap = 0;
    for (; tap + TOGETHER <= count; tap += TOGETHER) weigh_taps<T, OUTPUTS, TOGETHER>(stencil, tap, input, grads, to, pitch);
    for (; tap < count; ++tap) weigh_taps<T, OUTPUTS, 1>(stencil, tap, input, grads, to, pitch);
}

}  // namespace hamlet::HAMLET_ISA
