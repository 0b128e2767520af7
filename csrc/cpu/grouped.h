// Products of a group with several channels, any odd kernel: planes of the group's channels against registers of sums.
#pragma once

#include "planes.h"

namespace hamlet::HAMLET_ISA {

// A group's filters, [from][tap][to] so that the sums of several channels read them side by side.
template <class T>
struct Filters {
    const T* data;
    int64_t from, to;          // channels
    int height, width;         // of the kernel
    int64_t dilation;

    const T* at(int64_t channel, int tap) const { return data + (channel * height * width + tap) * to; }
};

template <class T>
inline int64_t filter_offset(const Convolution& c, int64_t sample, int64_t output, int64_t input) {
    return sample * c.weight.stride[0] + output * c.weight.stride[1] + input * c.weight.stride[2];
}

// The filters of outputs [first, first + count) on `inputs` channels; turned round and with the roles of the channels
// exchanged they give the input's gradient. The residual is one more of the middle tap.
template <class T>
inline Filters<T> read_filters(const Convolution& c, int64_t sample, int64_t first, int64_t outputs, int64_t inputs,
                               int64_t dilation, bool transposed, Buffer<T>& buffer) {
    const int height = int(c.weight.size[3]), width = int(c.weight.size[4]), taps = height * width;
    T* to = buffer.room(outputs * inputs * taps);
    for (int64_t o = 0; o < outputs; ++o)
        for (int64_t i = 0; i < inputs; ++i)
            for (int tap = 0; tap < taps; ++tap) {
                T value = read_one<T>(c.weight, filter_offset<T>(c, sample, first + o, i) + tap);
                if (c.residual && o == i && tap == taps / 2) value += 1;
                if (transposed) to[(o * taps + taps - 1 - tap) * inputs + i] = value;
                else to[(i * taps + tap) * outputs + o] = value;
            }
    return {to, transposed ? outputs : inputs, transposed ? inputs : outputs, height, width, dilation};
}

template <class T, int OUTPUTS>
HAMLET_INLINE void correlate_row(const Plane<T>* planes, const Filters<T>& filters, int64_t height, int64_t y,
                                 int64_t vector, int64_t first, const T* start, Vector<T> (&sums)[OUTPUTS]) {
    for (int o = 0; o < OUTPUTS; ++o) sums[o] = broadcast(start ? start[first + o] : T(0));
    for (int64_t channel = 0; channel < filters.from; ++channel) {
        const Plane<T>& plane = planes[channel];
        const int64_t reach = filters.dilation * plane.unit;
        for (int i = 0; i < filters.height; ++i) {
            const int64_t from = y + (i - filters.height / 2) * filters.dilation;
            if (from < 0 || from >= height) continue;
            const T* at = plane.row(from) + vector * LANES<T> - filters.width / 2 * reach;
            const T* weight = filters.at(channel, i * filters.width) + first;
            for (int j = 0; j < filters.width; ++j, at += reach, weight += filters.to) {
                const Vector<T> pixels = in_register(load(at));
#pragma GCC unroll 8
                for (int o = 0; o < OUTPUTS; ++o) sums[o] += broadcast(weight[o]) * pixels;
            }
        }
    }
}

// Correlate the planes with the filters and hand every `stride`-th row to the target of its output channel.
template <class T>
inline void correlate(const Plane<T>* planes, const Filters<T>& filters, int64_t height, int64_t stride, const T* start,
                      const Target<T>* targets) {
    constexpr int MOST = 8;
    for (int64_t y = 0; y < height; y += stride)
        for (int64_t vector = 0; vector < planes[0].vectors; ++vector) {
            int64_t first = 0;
            for (; first + MOST <= filters.to; first += MOST) {
                Vector<T> sums[MOST];
                correlate_row<T, MOST>(planes, filters, height, y, vector, first, start, sums);
                for (int o = 0; o < MOST; ++o) targets[first + o].write(y / stride, vector, sums[o]);
            }
            for (; first < filters.to; ++first) {
                Vector<T> sums[1];
                correlate_row<T, 1>(planes, filters, height, y, vector, first, start, sums);
                targets[first].write(y / stride, vector, sums[0]);
            }
        }
}

// sums[o][i] = sum over pixels of grads[o] * inputs[i] moved by a tap.
template <class T, int OUTPUTS, int INPUTS>
HAMLET_INLINE void pair_up(const Plane<T>* grads, const Plane<T>* inputs, int64_t height, int64_t down, int64_t right,
                           T (&sums)[OUTPUTS][INPUTS]) {
    Vector<T> totals[OUTPUTS][INPUTS] = {};
    const int64_t begin = std::max<int64_t>(0, -down), end = std::min(height, height - down);
    for (int64_t y = begin; y < end; ++y)
        for (int64_t vector = 0; vector < grads[0].vectors; ++vector) {
            Vector<T> pixels[INPUTS];
#pragma GCC unroll 4
            for (int i = 0; i < INPUTS; ++i) pixels[i] = in_register(load(inputs[i].row(y + down) + vector * LANES<T> + right));
#pragma GCC unroll 4
            for (int o = 0; o < OUTPUTS; ++o) {
                const Vector<T> grad = in_register(load(grads[o].row(y) + vector * LANES<T>));
#pragma GCC unroll 4
                for (int i = 0; i < INPUTS; ++i) totals[o][i] += grad * pixels[i];
            }
        }
    for (int o = 0; o < OUTPUTS; ++o)
        for (int i = 0; i < INPUTS; ++i) sums[o][i] = sum<T>(totals[o][i]);
}

}  // namespace hamlet::HAMLET_ISA
