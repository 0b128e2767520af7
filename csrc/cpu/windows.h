// Which keys a tile of queries reaches, and with what weight. A tile's queries are the lanes of a vector.
#pragma once

#include <algorithm>

#include "convert.h"
#include "scratch.h"

namespace hamlet::HAMLET_ISA {

// A tile is as square as its lanes allow: the union of its queries' windows is then smallest.
template <class T>
constexpr int TILE_WIDTH = LANES<T> >= 8 ? 4 : 2;
template <class T>
constexpr int TILE_HEIGHT = LANES<T> / TILE_WIDTH<T>;

struct Extent {
    int64_t height, width;
};

inline Extent extent_of(const View& extent, int64_t sample, const View& grid) {
    if (!extent) return {grid.size[1], grid.size[2]};
    const int64_t* values = reinterpret_cast<const int64_t*>(extent.data) + 2 * sample;
    return {values[0], values[1]};
}

// One sample and head, for walks over their rows of pixels.
struct Plane {
    int64_t sample, head;

    int64_t offset(const View& view, int64_t y, int64_t x) const {
        return sample * view.stride[0] + y * view.stride[1] + x * view.stride[2] + head * view.stride[3];
    }
};

// Heads [first, first + count) of one sample.
struct Heads {
    int64_t sample, first, count;

    Plane plane(int64_t head) const { return {sample, first + head}; }
};

// One axis of the two grids: query i has its centre at (i + 0.5) * keys / queries - 0.5.
struct Axis {
    int64_t queries, keys;

    double centre(int64_t query) const { return (query + 0.5) * double(keys) / double(queries) - 0.5; }

    // The first key and the one after the last that any query of [first, last] may reach; a key too many at most.
    void reached(int64_t first, int64_t last, double reach, int64_t& begin, int64_t& end) const {
        const double low = std::floor(centre(first) - reach), high = std::ceil(centre(last) + reach);
        begin = low < 0 ? 0 : std::min(int64_t(low), keys);
        end = high >= double(keys - 1) ? keys : std::max(int64_t(high) + 1, begin);
    }
};

// Distances along one axis between a tile's queries and the keys that any radius lets them reach, a vector for each key;
// from them the weights for radii: the ramp, not above 1, -1 for a key beyond it. A key's weight is the lesser of its row's
// and its column's; a key exists where that is not negative.
template <class T>
struct AxisWeights {
    int64_t begin = 0, end = 0;    // keys that some query reaches
    Vector<T>* weights = nullptr;  // of key `begin + i` at i
    unsigned* lanes = nullptr;     // which queries reach it, one bit each

    // Queries [first, last] of the axis, one of them in each lane.
    void measure(const Axis& axis, const T* query_of_lane, int64_t first, int64_t last, double reach) {
        axis.reached(first, last, reach, first_, last_);
        const int64_t count = last_ - first_;
        distances_.room(count);
        weights_.room(count);
        lanes_.room(count);
        // |key - centre| over a common denominator is exact until the one rounding of the quotient, which a residual
        // step makes right: a key at exactly the radius must not fall on the ramp.
        const T queries = T(axis.queries), denominator = 2 * queries;
        const Vector<T> reciprocal = broadcast<T>(T(1) / denominator);
        const Vector<T> offset = (2 * load(query_of_lane) + 1) * T(axis.keys);
        for (int64_t i = 0; i < count; ++i) {
            const Vector<T> numerator = absolute<T>(queries * T(2 * (first_ + i) + 1) - offset);
            const Vector<T> distance = numerator * reciprocal;
            distances_.room(0)[i] = distance + (numerator - distance * denominator) * reciprocal;
        }
    }

    void make(Vector<T> radius, T softness) {
        begin = first_, end = last_;
        weights = weights_.room(0), lanes = lanes_.room(0);
        const Vector<T> ones = broadcast<T>(T(1)), below_one = broadcast<T>(std::nextafter(T(1), T(0)));
        const Vector<T> least = broadcast<T>(std::numeric_limits<T>::epsilon() / 2);
        const Vector<T> steepness = broadcast<T>(T(1) / softness), foot = broadcast<T>(-softness);
        const Vector<T>* distances = distances_.room(0);
        for (int64_t i = 0; i < end - begin; ++i) {
            const Vector<T> margin = radius - distances[i];
            // Rounding must neither take a key of the ramp's foot away, nor put one of the ramp at full weight.
            const Vector<T> ramp = max<T>(least, min<T>(1 + margin * steepness, below_one));
            const Vector<T> weight = where_not_negative<T>(margin, ones, ramp);
            weights[i] = where_not_negative<T>(foot - margin, -ones, weight);
            lanes[i] = not_negative<T>(weights[i]);
        }
        for (; begin < end && !lanes[0]; ++begin, ++lanes) ++weights;
        while (end > begin && !lanes[end - 1 - begin]) --end;
    }

   private:
    int64_t first_ = 0, last_ = 0;
    Buffer<Vector<T>> distances_, weights_;
    Buffer<unsigned> lanes_;
};

// A tile of queries: where its lanes lie, and which of them are queries at all.
template <class T>
struct Tile {
    static constexpr int WIDTH = TILE_WIDTH<T>, HEIGHT = TILE_HEIGHT<T>;

    int64_t y, x;           // of lane 0
    int rows, columns;      // queries within the grid
    int valid_rows, valid_columns;  // those of them within the extent

    Tile(int64_t y, int64_t x, const View& grid, Extent extent)
        : y(y),
          x(x),
          rows(int(std::min<int64_t>(HEIGHT, grid.size[1] - y))),
          columns(int(std::min<int64_t>(WIDTH, grid.size[2] - x))),
          valid_rows(int(std::clamp<int64_t>(extent.height - y, 0, HEIGHT))),
          valid_columns(int(std::clamp<int64_t>(extent.width - x, 0, WIDTH))) {
        alignas(64) T signs[LANES<T>];
        for (int lane = 0; lane < LANES<T>; ++lane) signs[lane] = has(lane) ? T(1) : T(-1);
        signs_ = load(signs);
    }

    bool empty() const { return valid_rows == 0 || valid_columns == 0; }

    bool has(int lane) const { return lane / WIDTH < valid_rows && lane % WIDTH < valid_columns; }

    // A view (B, H, W, N) at each query, `absent` without a view; `nowhere` in the lanes that hold no query.
    Vector<T> read(const View& view, Plane plane, T absent, T nowhere) const {
        const Vector<T> without = where_not_negative<T>(signs_, broadcast(absent), broadcast(nowhere));
        if (!view) return without;
        alignas(64) T values[LANES<T>];
        store(values, without);
        with_type(view.dtype, [&](auto* storage) {
            const auto* data = reinterpret_cast<decltype(storage)>(view.data) + plane.offset(view, y, x);
            for_each_lane(valid_rows, valid_columns, [&](int lane) {
                values[lane] = number_of<T>(data[lane / WIDTH * view.stride[1] + lane % WIDTH * view.stride[2]]);
            });
        });
        return load(values);
    }

    void write(const View& view, Plane plane, Vector<T> vector) const {
        alignas(64) T values[LANES<T>];
        store(values, vector);
        with_type(view.dtype, [&](auto* storage) {
            auto* data = reinterpret_cast<decltype(storage)>(view.data) + plane.offset(view, y, x);
            for_each_lane(rows, columns, [&](int lane) {
                set_number(data[lane / WIDTH * view.stride[1] + lane % WIDTH * view.stride[2]], values[lane]);
            });
        });
    }

   private:
    Vector<T> signs_;  // -1 in the lanes that hold no query

    template <class Run>
    static HAMLET_INLINE void for_each_lane(int rows, int columns, const Run& run) {
        for (int row = 0; row < rows; ++row)
            for (int column = 0; column < columns; ++column) run(row * WIDTH + column);
    }
};

constexpr int CHUNK = 512;
constexpr int PADDING = HAMLET_VECTOR_BYTES == 64 ? 32 : 8;

// Where packed rows of pixels lie: row `first` at the beginning, row `first + capacity` in its place again.
struct Ring {
    int64_t first = 0, capacity = 1, width = 0;

    int64_t index(int64_t row, int64_t column) const { return (row - first) % capacity * width + column; }
};

// The keys that a tile reaches, in order of rows, at most CHUNK at a time.
template <class T>
struct KeyList {
    int count = 0, runs = 0;
    int run_begin[CHUNK + 1];             // the keys of a run follow each other: each is a part of a row
    int32_t index[CHUNK + PADDING];       // among the packed keys
    Vector<T> weights[CHUNK + PADDING];   // -1 where a query does not reach the key
    int begin[TILE_HEIGHT<T>], end[TILE_HEIGHT<T>];  // the part that the queries of a tile's row reach
    int row_begin, row_end;          // the part in the rows of keys [first_row, last_row) asked for

    // Go on from (row, column), which are moved; returns whether keys were found.
    bool fill(const AxisWeights<T>& rows, const AxisWeights<T>& columns, int64_t& row, int64_t& column,
              Ring ring, int64_t first_row, int64_t last_row) {
        count = runs = 0;
        row_begin = row_end = 0;
        for (int i = 0; i < TILE_HEIGHT<T>; ++i) begin[i] = end[i] = 0;
        while (row < rows.end && count < CHUNK) {
            const Vector<T> of_row = rows.weights[row - rows.begin];
            const unsigned lanes = rows.lanes[row - rows.begin];
            const unsigned* of_column = columns.lanes - columns.begin;
            int64_t last = columns.end;
            while (column < last && !(lanes & of_column[column])) ++column;
            while (column < last && !(lanes & of_column[last - 1])) --last;
            const int taken = int(std::min<int64_t>(last - column, CHUNK - count));
            if (taken > 0) {
                note(lanes, taken, row >= first_row && row < last_row);
                const Vector<T>* of_columns = columns.weights + (column - columns.begin);
                const int32_t first = int32_t(ring.index(row, column));
                run_begin[runs++] = count;
                for (int i = 0; i < taken; ++i) {
                    index[count + i] = first + i;
                    weights[count + i] = min<T>(of_row, of_columns[i]);
                }
                count += taken;
                column += taken;
            }
            if (column >= last) {
                ++row;
                column = columns.begin;
            }
        }
        run_begin[runs] = count;
        for (int i = 0; i < PADDING && count; ++i) {
            index[count + i] = index[count - 1];
            weights[count + i] = broadcast<T>(-1);
        }
        return count > 0;
    }

   private:
    void note(unsigned lanes, int taken, bool asked) {
        constexpr unsigned of_tile_row = (1u << TILE_WIDTH<T>)-1;
        // Written without branches, which no processor could foretell.
        for (int i = 0; i < TILE_HEIGHT<T>; ++i) {
            const bool reached = lanes >> (i * TILE_WIDTH<T>) & of_tile_row;
            begin[i] = reached && end[i] == 0 ? count : begin[i];
            end[i] = reached ? count + taken : end[i];
        }
        if (asked) {
            if (row_begin == row_end) row_begin = count;
            row_end = count + taken;
        }
    }
};

}  // namespace hamlet::HAMLET_ISA
