// What the forward and the backward of attention share: bands of work, packed keys, packed queries.
#pragma once

#include <vector>

#include "kernels.h"
#include "parallel.h"
#include "products.h"
#if defined(__AMX_BF16__)
#include "products_bfloat16.h"
#endif

#if defined(__AMX_BF16__)
// The matrix unit's set has kernels for bfloat16 alone.
namespace hamlet::avx512 {
void attention_forward(const Attention&);
void attention_backward(const Attention&);
}  // namespace hamlet::avx512
#endif

namespace hamlet::HAMLET_ISA {

constexpr double LOG2_E = 1.4426950408889634074, LN_2 = 0.69314718055994530942;

// Rows are packed as the dtype of accumulation, T, from any storage; or as they are stored, where that is not T.
template <class T, class S, class Run>
inline void with_source(DType dtype, const Run& run) {
    if constexpr (std::is_same_v<S, T>) with_storage<T>(dtype, run);
    else run(static_cast<S*>(nullptr));
}

// x - x is 0 for finite x, NaN for all else; a sum keeps the NaN.
template <std::floating_point T>
HAMLET_INLINE Vector<T> not_finite(const T* row, int64_t pitch) {
    Vector<T> sum = {};
    for (int64_t i = 0; i < pitch; i += LANES<T>) sum += load(row + i) - load(row + i);
    return sum;
}

template <class T>
HAMLET_INLINE bool is_zero(Vector<T> nothing) {
    constexpr unsigned every = (1ull << LANES<T>)-1;
    return not_negative<T>(nothing) == every;
}

// A processor looks ahead within a page of memory, not into the next one.
constexpr int64_t PIXELS_AHEAD = 6;

// Rows of pixels of several heads, packed head by head. The last `capacity` of them are kept:
// each is read once, and what is kept stays in the cache. The heads of a pixel share pages of memory.
template <class T, class S>
class Packed {
   public:
    Ring ring;
    bool finite = true;

    void begin(const View& view, Heads heads, int64_t first, int64_t capacity, int64_t width) {
        heads_ = heads;
        pitch_ = padded<S>(view.size[4]);
        data_ = buffer_.room((heads.count * capacity * width + ROWS_BEYOND) * pitch_);
        ring = {first, capacity, width};
        last_ = first;
        finite = true;
    }

    Rows<S> rows(int64_t head) const { return {data_ + head * ring.capacity * ring.width * pitch_, pitch_}; }

    // Pack on, up to `row`.
    void reach(const View& view, int64_t row) {
        with_source<T, S>(view.dtype, [&](auto* storage) {
            using Stored = std::remove_pointer_t<decltype(storage)>;
            Vector<T> nothing = {};
            for (; last_ < row; ++last_) {
                const Stored* from = reinterpret_cast<const Stored*>(view.data) + heads_.plane(0).offset(view, last_, 0);
                S* to = rows(0).at(ring.index(last_, 0));
                for (int64_t x = 0; x < ring.width; ++x, from += view.stride[2], to += pitch_)
                    for (int64_t head = 0; head < heads_.count; ++head) {
                        const Stored* own = from + head * view.stride[3];
                        ask_for<CACHE_AHEAD<Stored>>(own + PIXELS_AHEAD * view.stride[2], view.size[4]);
                        nothing += read_padded(own, view.size[4], to + head * ring.capacity * ring.width * pitch_);
                    }
            }
            finite &= is_zero<T>(nothing);
        });
    }

   private:
    Heads heads_{};
    S* data_ = nullptr;
    int64_t pitch_ = 0, last_ = 0;
    Buffer<S> buffer_;
};

// The queries of a tile as rows: LANES rows of `padded(channels)`; those that do not exist are 0.
template <class T, class S>
inline void pack_tile(const Tile<T>& tile, const View& view, Plane plane, S* to) {
    const int64_t channels = view.size[4], pitch = padded<S>(channels);
    with_source<T, S>(view.dtype, [&](auto* storage) {
        using Stored = std::remove_pointer_t<decltype(storage)>;
        for (int lane = 0; lane < LANES<T>; ++lane) {
            const int64_t offset = plane.offset(view, tile.y + lane / tile.WIDTH, tile.x + lane % tile.WIDTH);
            const Stored* from = reinterpret_cast<const Stored*>(view.data) + offset;
            ask_for<CACHE_AHEAD<Stored>>(from + tile.WIDTH * view.stride[2], channels);
            if (tile.has(lane)) read_padded(from, channels, to + lane * pitch);
            else std::fill_n(to + lane * pitch, pitch, S{});
        }
    });
}

// Rows of a tile with the queries in the lanes: to[d][lane] = factor * from[lane][d], for `padded(channels)` of d.
template <std::floating_point T>
inline void transpose(const T* from, int64_t channels, T* to, T factor = 1) {
    const int64_t pitch = padded<T>(channels);
    for (int64_t d = 0; d < pitch; d += LANES<T>) {
        Vector<T> square[LANES<T>];
        for (int lane = 0; lane < LANES<T>; ++lane) square[lane] = load(from + lane * pitch + d);
        transpose_square<T>(square);
        for (int i = 0; i < LANES<T>; ++i) store(to + (d + i) * LANES<T>, factor * square[i]);
    }
}

// The clamped radii of a tile, and what NaN among them does to the results.
template <class T>
struct Radii {
    Vector<T> own, clamped, poison;

    Radii() = default;
    Radii(const Tile<T>& tile, const View& view, Plane plane, T bound) {
        // A query that does not exist reaches nothing.
        constexpr T nowhere = -std::numeric_limits<T>::infinity();
        const Vector<T> least = broadcast<T>(T(0.5)), exists = tile.read({}, plane, T(1), T(-1));
        own = tile.read(view, plane, bound, nowhere);
        // NaN reaches what the least radius does.
        const Vector<T> within = where_not_negative<T>(own - least, min<T>(own, broadcast(bound)), least);
        clamped = where_not_negative<T>(exists, within, broadcast(nowhere));
        poison = where_not_negative<T>(own * own, Vector<T>{}, own);
    }
};

// The windows of a tile on a grid of keys.
template <class T>
struct TileWindows {
    AxisWeights<T> rows, columns;

    void measure(const Tile<T>& tile, Extent queries, Extent keys, double reach) {
        alignas(64) T y[LANES<T>], x[LANES<T>];
        for (int lane = 0; lane < LANES<T>; ++lane) {
            y[lane] = T(tile.y + lane / tile.WIDTH);
            x[lane] = T(tile.x + lane % tile.WIDTH);
        }
        rows.measure({queries.height, keys.height}, y, tile.y, tile.y + tile.valid_rows - 1, reach);
        columns.measure({queries.width, keys.width}, x, tile.x, tile.x + tile.valid_columns - 1, reach);
    }

    void make(Vector<T> radius, T softness) {
        rows.make(radius, softness);
        columns.make(radius, softness);
    }
};

// The rows of keys that a row of tiles reaches at most.
template <class T>
inline void reached(const Attention& attention, const Pair& pair, int64_t sample, int64_t row, int64_t& begin,
                    int64_t& end) {
    const QueryLevel& level = attention.levels[pair.level];
    const KeyLevel& source = attention.sources[pair.source];
    const int64_t queries = extent_of(level.extent, sample, level.query).height, y = row * TILE_HEIGHT<T>;
    Axis{queries, extent_of(source.extent, sample, source.key).height}.reached(
        y, std::min(y + TILE_HEIGHT<T>, queries) - 1, pair.max_radius + attention.softness, begin, end);
}

inline bool is_bfloat16(const Attention& attention) {
    const auto is = [](const View& view) { return view.dtype == DType::bfloat16; };
    return std::all_of(attention.levels.begin(), attention.levels.end(),
                       [&](const QueryLevel& level) { return is(level.query) && is(level.out); }) &&
           std::all_of(attention.sources.begin(), attention.sources.end(),
                       [&](const KeyLevel& source) { return is(source.key) && is(source.value); });
}

// Of the keys and values that a row of tiles reaches, of one head, as rows of S.
template <class T, class S>
inline int64_t bytes_reached(const Attention& attention, const Pair& pair) {
    const KeyLevel& source = attention.sources[pair.source];
    const double keys = double(source.key.size[1]), queries = double(attention.levels[pair.level].query.size[1]);
    const double rows = std::min(keys, TILE_HEIGHT<T> * keys / queries + 2 * (pair.max_radius + attention.softness) + 1);
    return int64_t(rows) * source.key.size[2] * (padded<S>(source.key.size[4]) + padded<S>(source.value.size[4])) *
           int64_t(sizeof(S));
}

// Groups of heads so large that their packed rows stay in a cache, or so small that every thread finds work.
inline std::vector<Heads> groups_of(int64_t samples, int64_t heads, int64_t bytes, int64_t wanted) {
    constexpr int64_t CACHE = 1 << 22;
    std::vector<Heads> groups;
    if (samples == 0 || heads == 0) return groups;
    const int64_t held = std::clamp<int64_t>(CACHE / bytes, 1, heads);
    const int64_t count = std::max(ceiling(heads, held), std::min(heads, ceiling(wanted, samples)));
    for (int64_t sample = 0; sample < samples; ++sample)
        for (int64_t group = 0; group < count; ++group) {
            const int64_t first = heads * group / count;
            groups.push_back({sample, first, heads * (group + 1) / count - first});
        }
    return groups;
}

}  // namespace hamlet::HAMLET_ISA
