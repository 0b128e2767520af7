// The three products of attention, between a tile's queries and a list of keys.
#pragma once

#include "windows.h"

namespace hamlet::HAMLET_ISA {

// Rows of keys, each `pitch` elements from the one before, zeros after the channels.
template <class T>
struct Rows {
    T* data = nullptr;
    int64_t pitch = 0;

    T* at(int64_t index) const { return data + index * pitch; }
};

template <class T>
inline int64_t padded(int64_t channels) {
    return (channels + LANES<T> - 1) / LANES<T> * LANES<T>;
}

// Held while products of such rows are computed.
template <class S>
struct ProductsInUse {
    ProductsInUse() {}
};

constexpr int KEYS_AT_ONCE = 8;
constexpr int ROWS_BEYOND = 16;  // how many rows after the last one may be read, whatever they hold

// Call `use(k, product)` with sum over d of queries[d] * rows[index[k]][d] for every key, up to the next multiple of eight:
// all queries of the tile in one vector. Eight sums at a time hide the latency of the multiply-add.
template <class T, class Use>
HAMLET_INLINE void multiply(const T* queries, const KeyList<T>& keys, Rows<T> rows, int64_t channels, const Use& use) {
    static_assert(KEYS_AT_ONCE <= PADDING);
    constexpr int STEP = LANES<T> < 8 ? LANES<T> : 8;  // rows are padded to whole vectors
    for (int first = 0; first < keys.count; first += KEYS_AT_ONCE) {
        const T* row[KEYS_AT_ONCE];
#pragma GCC unroll 8
        for (int j = 0; j < KEYS_AT_ONCE; ++j) row[j] = rows.at(keys.index[first + j]);
        Vector<T> total[KEYS_AT_ONCE] = {};
        const T* query = queries;
        for (int64_t d = 0; d < channels; d += STEP, query += STEP * LANES<T>) {
#pragma GCC unroll 8
            for (int i = 0; i < STEP; ++i) {
                const Vector<T> lanes = in_register(load(query + i * LANES<T>));
#pragma GCC unroll 8
                for (int j = 0; j < KEYS_AT_ONCE; ++j) total[j] += lanes * broadcast(row[j][i]);
            }
            for (int j = 0; j < KEYS_AT_ONCE; ++j) row[j] += STEP;
        }
#pragma GCC unroll 8
        for (int j = 0; j < KEYS_AT_ONCE; ++j) use(first + j, total[j]);
    }
}

// So many sums of the same, a summand going to each in turn, that the latency of the multiply-add is hidden.
constexpr int sums_in_turn(int sums) { return std::clamp(VECTOR_REGISTERS / 2 / sums, 1, 4); }

template <class T, int VECTORS, bool FINITE>
HAMLET_INLINE void weigh_columns(const T* weights, Rows<T> rows, const int32_t* index, int begin, int end, T* to,
                                 int64_t pitch) {
    constexpr int WIDTH = TILE_WIDTH<T>, TURNS = sums_in_turn(WIDTH * VECTORS);
    Vector<T> total[TURNS][WIDTH][VECTORS] = {};
    const auto add = [&](int k, Vector<T>(&own)[WIDTH][VECTORS]) HAMLET_INLINED {
        const T* row = rows.at(index[k]);
        const T* weight = weights + int64_t(k) * LANES<T>;
        Vector<T> part[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
            part[v] = load(row + v * LANES<T>);
            if constexpr (!FINITE) part[v] = finite_or_zero<T>(part[v]);
        }
#pragma GCC unroll 4
        for (int i = 0; i < WIDTH; ++i) {
            const Vector<T> factor = broadcast(weight[i]);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) own[i][v] += factor * part[v];
        }
    };
    int k = begin;
    for (; k + TURNS <= end; k += TURNS)
#pragma GCC unroll 4
        for (int turn = 0; turn < TURNS; ++turn) add(k + turn, total[turn]);
    for (; k < end; ++k) add(k, total[0]);
#pragma GCC unroll 4
    for (int i = 0; i < WIDTH; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
            Vector<T> sum = load(to + i * pitch + v * LANES<T>);
#pragma GCC unroll 4
            for (int turn = 0; turn < TURNS; ++turn) sum += total[turn][i][v];
            store(to + i * pitch + v * LANES<T>, sum);
        }
}

// to[query] += sum over keys of weights[key][query] * rows[index[key]]. Each row of the tile's queries runs over the keys
// that it reaches alone, its queries sharing what is loaded.
template <class T, bool FINITE>
inline void weigh(const KeyList<T>& keys, const Vector<T>* weights, Rows<T> rows, int64_t channels, T* to) {
    constexpr int MOST = VECTOR_REGISTERS == 32 ? 4 : 2;
    const int64_t pitch = padded<T>(channels);
    for (int y = 0; y < TILE_HEIGHT<T>; ++y) {
        const T* of_row = reinterpret_cast<const T*>(weights) + y * TILE_WIDTH<T>;
        for (int64_t d = 0; d < pitch;) {
            const int64_t left = (pitch - d) / LANES<T>;
            T* part = to + y * TILE_WIDTH<T> * pitch + d;
            const Rows<T> columns{rows.data + d, rows.pitch};
            if (left >= MOST) {
                weigh_columns<T, MOST, FINITE>(of_row, columns, keys.index, keys.begin[y], keys.end[y], part, pitch);
                d += MOST * LANES<T>;
            } else if (left >= 2) {
                weigh_columns<T, 2, FINITE>(of_row, columns, keys.index, keys.begin[y], keys.end[y], part, pitch);
                d += 2 * LANES<T>;
            } else {
                weigh_columns<T, 1, FINITE>(of_row, columns, keys.index, keys.begin[y], keys.end[y], part, pitch);
                d += LANES<T>;
            }
        }
    }
}

// A tile's rows as `scatter` takes them: where a weight is 0 the product must be 0 too, whatever they hold.
template <std::floating_point T>
inline void make_summands(const T* rows, int64_t channels, T* to) {
    for (int64_t i = 0; i < LANES<T> * padded<T>(channels); i += LANES<T>) store(to + i, finite_or_zero<T>(load(rows + i)));
}

template <class T, int VECTORS>
HAMLET_INLINE void scatter_columns(const T* weights, const T* queries, int64_t pitch, int first_lane, int last_lane,
                                   T* const* to) {
    constexpr int KEYS = 4, TURNS = sums_in_turn(KEYS * VECTORS);
    static_assert(TILE_WIDTH<T> % TURNS == 0);
    Vector<T> total[TURNS][KEYS][VECTORS] = {};
    for (int lane = first_lane; lane < last_lane; lane += TURNS) {
#pragma GCC unroll 4
        for (int turn = 0; turn < TURNS; ++turn) {
            Vector<T> part[VECTORS];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) part[v] = load(queries + (lane + turn) * pitch + v * LANES<T>);
#pragma GCC unroll 4
            for (int j = 0; j < KEYS; ++j) {
                const Vector<T> factor = broadcast(weights[j * LANES<T> + lane + turn]);
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; ++v) total[turn][j][v] += factor * part[v];
            }
        }
    }
#pragma GCC unroll 4
    for (int j = 0; j < KEYS; ++j)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
            Vector<T> sum = load(to[j] + v * LANES<T>);
#pragma GCC unroll 4
            for (int turn = 0; turn < TURNS; ++turn) sum += total[turn][j][v];
            store(to[j] + v * LANES<T>, sum);
        }
}

// rows[index[key]] += sum over queries of weights[key][query] * queries[query], for the keys [begin, end) of the list;
// the queries are summands.
// `nowhere` is a row that anything may be added to.
template <class T>
inline void scatter(const KeyList<T>& keys, const Vector<T>* weights, const T* queries, int64_t channels, Rows<T> rows,
                    T* nowhere) {
    constexpr int MOST = VECTOR_REGISTERS == 32 ? 4 : 2, KEYS = 4;
    const int64_t pitch = padded<T>(channels);
    for (int first = keys.row_begin; first < keys.row_end; first += KEYS) {
        const int last = std::min(first + KEYS, keys.row_end);
        int begin = TILE_HEIGHT<T>, end = 0;
        for (int y = 0; y < TILE_HEIGHT<T>; ++y)
            if (keys.begin[y] < last && keys.end[y] > first) {
                begin = std::min(begin, y);
                end = y + 1;
            }
        const T* of_keys = reinterpret_cast<const T*>(weights + first);
        for (int64_t d = 0; d < pitch;) {
            T* to[KEYS];
            for (int j = 0; j < KEYS; ++j) to[j] = first + j < last ? rows.at(keys.index[first + j]) + d : nowhere;
            const int64_t left = (pitch - d) / LANES<T>;
            const int first_lane = begin * TILE_WIDTH<T>, last_lane = end * TILE_WIDTH<T>;
            if (left >= MOST) {
                scatter_columns<T, MOST>(of_keys, queries + d, pitch, first_lane, last_lane, to);
                d += MOST * LANES<T>;
            } else if (left >= 2) {
                scatter_columns<T, 2>(of_keys, queries + d, pitch, first_lane, last_lane, to);
                d += 2 * LANES<T>;
            } else {
                scatter_columns<T, 1>(of_keys, queries + d, pitch, first_lane, last_lane, to);
                d += LANES<T>;
            }
        }
    }
}

}  // namespace hamlet::HAMLET_ISA
