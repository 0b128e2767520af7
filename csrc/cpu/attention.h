// What the forward and the backward of attention share: bands of work, packed keys, packed queries.
#pragma once

#include "kernels.h"
#include "parallel.h"
#include "products.h"

namespace hamlet::HAMLET_ISA {

constexpr double LOG2_E = 1.4426950408889634074, LN_2 = 0.69314718055994530942;


template <class T>
inline bool all_finite(const T* row, int64_t pitch) {
    // x - x is 0 for finite x, NaN for all else; the sum keeps the NaN.
    Vector<T> sum = {};
    for (int64_t i = 0; i < pitch; i += LANES<T>) sum += load(row + i) - load(row + i);
    constexpr unsigned every = (1ull << LANES<T>)-1;
    return not_negative<T>(sum) == every;
}

// Rows of pixels of a plane, packed one after the other as the dtype of accumulation. The last `capacity` of them are
// kept: each is read once, and what is kept stays in the cache.
template <class T>
struct Packed {
    Rows<T> rows;
    Ring ring;
    int64_t last = 0;
    bool finite = true;

    void begin(const View& view, int64_t first, int64_t capacity, int64_t width, Buffer<T>& buffer) {
        rows = {buffer.room(capacity * width * padded<T>(view.size[4])), padded<T>(view.size[4])};
        ring = {first, capacity, width};
        last = first;
        finite = true;
    }

    // Pack on, up to `row`.
    void reach(const View& view, Plane plane, int64_t row) {
        for (; last < row; ++last) {
            T* to = rows.at(ring.index(last, 0));
            for (int64_t x = 0; x < ring.width; ++x, to += rows.pitch) {
                read_row(view, plane.offset(view, last, x), to, view.size[4]);
                for (int64_t d = view.size[4]; d < rows.pitch; ++d) to[d] = 0;
                finite &= all_finite(to, rows.pitch);
            }
        }
    }

    // Ask for part `number` of `parts` of the pixels that are not packed yet, up to `row`.
    void look_ahead(const View& view, Plane plane, int64_t row, int64_t number, int64_t parts, Ahead& ahead) const {
        const int64_t pixels = std::max<int64_t>(row - last, 0) * ring.width;
        for (int64_t i = pixels * number / parts; i < pixels * (number + 1) / parts; ++i)
            ahead.add(view, plane.offset(view, last + i / ring.width, i % ring.width), view.size[4]);
    }
};

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

template <class T>
inline void look_ahead(const Tile<T>& tile, const View& view, Plane plane, Ahead& ahead) {
    for (int row = 0; row < tile.valid_rows; ++row)
        for (int column = 0; column < tile.valid_columns; ++column)
            ahead.add(view, plane.offset(view, tile.y + row, tile.x + column), view.size[4]);
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
