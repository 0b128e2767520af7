// Depthwise products over a plane: each channel with its own filter, stride 1, square kernels of odd size.
#pragma once

#include "planes.h"

namespace hamlet::HAMLET_ISA {

// The filters of a plane, one vector a tap: a broadcast, or the taps of the channels in the lanes. `flipped` turns them
// round; the residual is one more of the middle tap.
template <class T, int K>
inline void read_filters(const Convolution& c, const Channels& channels, bool flipped, Vector<T> (&filters)[K * K]) {
    for (int tap = 0; tap < K * K; ++tap) {
        alignas(64) T values[LANES<T>] = {};
        for (int64_t lane = 0; lane < (channels.in_lanes ? LANES<T> : 1); ++lane) {
            if (lane >= channels.lanes) break;
            const int64_t offset = channels.sample * c.weight.stride[0] + (channels.first + lane) * c.weight.stride[1];
            values[lane] = read_one<T>(c.weight, offset + (flipped ? K * K - 1 - tap : tap));
            if (c.residual && tap == K * K / 2) values[lane] += 1;
        }
        filters[tap] = channels.in_lanes ? load(values) : broadcast(values[0]);
    }
}

// The K output rows that the row of pixels at hand reaches, the first of them complete once it has been added.
template <class T, int K, int COLUMNS>
struct RollingSums {
    Vector<T> sums[COLUMNS][K];

    HAMLET_INLINE explicit RollingSums(Vector<T> start) {
#pragma GCC unroll 2
        for (int column = 0; column < COLUMNS; ++column)
#pragma GCC unroll 8
            for (int i = 0; i < K; ++i) sums[column][i] = start;
    }

    HAMLET_INLINE void add(const T* at, int64_t reach, const Vector<T> (&filters)[K * K]) {
#pragma GCC unroll 8
        for (int x = 0; x < K; ++x)
#pragma GCC unroll 2
            for (int column = 0; column < COLUMNS; ++column) {
                const Vector<T> pixels = in_register(load(at + x * reach + column * LANES<T>));
#pragma GCC unroll 8
                for (int y = 0; y < K; ++y) sums[column][K - 1 - y] += filters[y * K + x] * pixels;
            }
    }

    HAMLET_INLINE void write(T* const (&to)[COLUMNS], int64_t offset, const int64_t (&counts)[COLUMNS]) const {
#pragma GCC unroll 2
        for (int column = 0; column < COLUMNS; ++column) store_first(to[column] + offset, sums[column][0], counts[column]);
    }

    HAMLET_INLINE void roll(Vector<T> start) {
#pragma GCC unroll 2
        for (int column = 0; column < COLUMNS; ++column) {
#pragma GCC unroll 8
            for (int i = 0; i + 1 < K; ++i) sums[column][i] = sums[column][i + 1];
            sums[column][K - 1] = start;
        }
    }
};

template <class T, int K, int COLUMNS>
HAMLET_INLINE void roll_down(const Plane<T>& plane, int64_t rows, int64_t first, int64_t dilation, int64_t vector,
                             const Vector<T> (&filters)[K * K], Vector<T> start, const Target<T>& target) {
    constexpr int R = K / 2;
    const int64_t reach = dilation * plane.unit, pitch = dilation * plane.pitch();
    const T* at = plane.row(first) + vector * LANES<T> - R * reach;
    T* to[COLUMNS];
    int64_t counts[COLUMNS];
    for (int column = 0; column < COLUMNS; ++column) {
        to[column] = target.at(first, vector + column);
        counts[column] = target.count(vector + column);
    }
    const int64_t down = dilation * target.row();
    RollingSums<T, K, COLUMNS> sums(start);
    int64_t row = 0;
    for (; row < std::min<int64_t>(R, rows); ++row, at += pitch) {
        sums.add(at, reach, filters);
        sums.roll(start);
    }
    for (; row < rows; ++row, at += pitch) {
        sums.add(at, reach, filters);
        sums.write(to, (row - R) * down, counts);
        sums.roll(start);
    }
    for (; row < rows + R; ++row) {
        if (row >= R) sums.write(to, (row - R) * down, counts);
        sums.roll(start);
    }
}

// Correlate a plane with its filters. Going down the rows that a dilation apart, each loaded vector serves the K output
// rows that it reaches.
template <class T, int K>
inline void correlate(const Plane<T>& plane, int64_t height, int64_t dilation, const Vector<T> (&given)[K * K],
                      Vector<T> start, const Target<T>& target) {
    // Two columns at once hide the latency of the multiply-add where their sums and the filters fit the registers.
    constexpr int COLUMNS = K * K + 2 * K + 2 <= VECTOR_REGISTERS ? 2 : 1;
    Vector<T> filters[K * K];
    for (int tap = 0; tap < K * K; ++tap) filters[tap] = given[tap];
    for (int64_t first = 0; first < std::min(dilation, height); ++first) {
        const int64_t rows = ceiling(height - first, dilation);
        int64_t vector = 0;
        for (; vector + COLUMNS <= plane.vectors; vector += COLUMNS)
            roll_down<T, K, COLUMNS>(plane, rows, first, dilation, vector, filters, start, target);
        for (; vector < plane.vectors; ++vector)
            roll_down<T, K, 1>(plane, rows, first, dilation, vector, filters, start, target);
    }
}

// Both gradients in one pass: what is loaded of the output's gradient, shifted by a tap, gives that tap's part of the
// input's gradient and, times the input, of the tap's own. `filters` are turned round, `d_filters` are not.
template <class T, int K>
inline void correlate_backward(const Plane<T>& grad, const Plane<T>& input, const T* zeros, int64_t height,
                               int64_t dilation, const Vector<T> (&given)[K * K], const Target<T>& target,
                               Vector<T> (&d_filters)[K * K]) {
    constexpr int R = K / 2;
    const int64_t reach = dilation * grad.unit;
    const Target<T> to = target;
    Vector<T> filters[K * K], sums[K * K] = {};
    for (int tap = 0; tap < K * K; ++tap) filters[tap] = given[tap];
    for (int64_t y = 0; y < height; ++y) {
        const T* rows[K];
        for (int i = 0; i < K; ++i) {
            const int64_t from = y + (i - R) * dilation;
            rows[i] = (from >= 0 && from < height ? grad.row(from) : zeros) - R * reach;
        }
        for (int64_t vector = 0; vector < grad.vectors; ++vector) {
            const Vector<T> pixels = in_register(load(input.row(y) + vector * LANES<T>));
            Vector<T> d_pixels = {};
#pragma GCC unroll 32
            for (int tap = 0; tap < K * K; ++tap) {
                const Vector<T> shifted = in_register(load(rows[tap / K] + (tap % K) * reach + vector * LANES<T>));
                d_pixels += filters[tap] * shifted;
                sums[tap] += pixels * shifted;
            }
            to.write(y, vector, d_pixels);
        }
    }
    for (int tap = 0; tap < K * K; ++tap) d_filters[K * K - 1 - tap] = sums[tap];
}

}  // namespace hamlet::HAMLET_ISA
