// What the forward and the backward of attention share: bands of work, packed keys, packed queries.
#pragma once

#include "kernels.h"
#include "parallel.h"
#include "products.h"

namespace hamlet::HAMLET_ISA {

constexpr double LOG2_E = 1.4426950408889634074, LN_2 = 0.69314718055994530942;

inline int64_t ceiling(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T>
inline bool all_finite(const T* row, int64_t pitch) {
    // x - x is 0 for finite x, NaN for all else; the sum keeps the NaN.
    Vector<T> sum = {};
    for (int64_t i = 0; i < pitch; i += LANES<T>) sum += load(row + i) - load(row + i);
    constexpr unsigned every = (1ull << LANES<T>)-1;
    return not_negative<T>(sum) == every;
}

constexpr int64_t AHEAD = 8;  // pixels between the one that is read and the one asked of memory

// Pixels of rows [first, last) of a plane, packed one after the other as the dtype of accumulation.
template <class T>
struct Packed {
    Rows<T> rows;
    bool finite = true;
};

template <class T>
inline Packed<T> pack(const View& view, Plane plane, int64_t first, int64_t last, int64_t width, Buffer<T>& buffer) {
    const int64_t channels = view.size[4], pitch = padded<T>(channels);
    Packed<T> packed{{buffer.room((last - first) * width * pitch), pitch}};
    T* to = packed.rows.data;
    for (int64_t y = first; y < last; ++y)
        for (int64_t x = 0; x < width; ++x, to += pitch) {
            prefetch_row(view, plane.offset(view, y, x + AHEAD), channels);
            read_row(view, plane.offset(view, y, x), to, channels);
            for (int64_t d = channels; d < pitch; ++d) to[d] = 0;
            packed.finite &= all_finite(to, pitch);
        }
    return packed;
}

// The queries of a tile as rows: LANES rows of `padded(channels)`; those that do not exist are 0.
template <class T>
inline void pack_tile(const Tile<T>& tile, const View& view, Plane plane, T* to) {
    const int64_t channels = view.size[4], pitch = padded<T>(channels);
    for (int lane = 0; lane < LANES<T>; ++lane) {
        const int row = lane / tile.WIDTH, column = lane % tile.WIDTH;
        T* own = to + lane * pitch;
        int64_t d = 0;
        if (row < tile.valid_rows && column < tile.valid_columns) {
            read_row(view, plane.offset(view, tile.y + row, tile.x + column), own, channels);
            d = channels;
        }
        for (; d < pitch; ++d) own[d] = 0;
    }
}

template <class T, int WRITE = 0>
inline void prefetch_tile(const Tile<T>& tile, const View& view, Plane plane) {
    for (int row = 0; row < tile.rows; ++row)
        for (int column = 0; column < tile.columns; ++column)
            prefetch_row<WRITE>(view, plane.offset(view, tile.y + row, tile.x + column), view.size[4]);
}

// Rows of a tile with the queries in the lanes: to[d][lane] = factor * from[lane][d], for `padded(channels)` of d.
template <class T>
inline void transpose(const T* from, int64_t channels, T factor, T* to) {
    const int64_t pitch = padded<T>(channels);
    for (int64_t d = 0; d < pitch; d += LANES<T>) {
        Vector<T> square[LANES<T>];
        for (int lane = 0; lane < LANES<T>; ++lane) square[lane] = load(from + lane * pitch + d);
        transpose_square<T>(square);
        for (int i = 0; i < LANES<T>; ++i) store(to + (d + i) * LANES<T>, factor * square[i]);
    }
}

template <class T>
inline void clean(T* row, int64_t count) {
    for (int64_t i = 0; i < count; ++i) row[i] = std::isfinite(row[i]) ? row[i] : T(0);
}

// The clamped radii of a tile, and what NaN among them does to the results.
template <class T>
struct Radii {
    Vector<T> own, clamped, poison;
    T largest = T(0.5);

    Radii(const Tile<T>& tile, const View& view, Plane plane, T bound) {
        // A query that does not exist reaches nothing.
        constexpr T nowhere = -std::numeric_limits<T>::infinity();
        alignas(64) T values[LANES<T>], spoilt[LANES<T>] = {};
        own = tile.read(view, plane, bound, nowhere);
        store(values, own);
        for (int lane = 0; lane < LANES<T>; ++lane) {
            if (values[lane] == nowhere && !tile.has(lane)) continue;
            if (values[lane] != values[lane]) spoilt[lane] = values[lane];
            values[lane] = values[lane] > T(0.5) ? std::min(values[lane], bound) : T(0.5);
            largest = std::max(largest, values[lane]);
        }
        clamped = load(values);
        poison = load(spoilt);
    }
};

// The windows of a tile on a grid of keys.
template <class T>
struct TileWindows {
    AxisWeights<T> rows, columns;

    void make(const Tile<T>& tile, Extent queries, Extent keys, const Radii<T>& radii, T softness,
              AxisBuffers<T>& row_buffers, AxisBuffers<T>& column_buffers) {
        alignas(64) T y[LANES<T>], x[LANES<T>];
        for (int lane = 0; lane < LANES<T>; ++lane) {
            y[lane] = T(tile.y + lane / tile.WIDTH);
            x[lane] = T(tile.x + lane % tile.WIDTH);
        }
        const T reach = radii.largest + softness;
        rows.make({queries.height, keys.height}, y, radii.clamped, reach, tile.y, tile.y + tile.valid_rows - 1,
                  softness, row_buffers);
        columns.make({queries.width, keys.width}, x, radii.clamped, reach, tile.x, tile.x + tile.valid_columns - 1,
                     softness, column_buffers);
    }
};

}  // namespace hamlet::HAMLET_ISA
