// Depthwise products: each channel with its own filter, stride 1, square kernels of odd size. `S` is the dtype of storage.
#pragma once

#include "columns.h"

namespace hamlet::HAMLET_ISA {

// Asks for what the next plane will need at the same place. Into the second cache where two planes and their results would
// fill half of the nearest one, and where wide vectors ask faster than memory answers; a 5 x 5 is slow enough for the nearest.
template <class S, int K>
class NextPlane {
   public:
    const bool large;

    HAMLET_INLINE explicit NextPlane(int64_t ahead) : large(ahead * int64_t(sizeof(S)) > LARGE), ahead_(ahead) {}

    template <int WRITTEN = 0>
    HAMLET_INLINE void ask_for(const S* at) const {
        if (K <= 3 && (large || HASTY)) __builtin_prefetch(at + ahead_, WRITTEN, SECOND_CACHE);
        else __builtin_prefetch(at + ahead_, WRITTEN, NEAREST_CACHE);
    }

   private:
    static constexpr bool HASTY = HAMLET_VECTOR_BYTES == 64 && CACHE_AHEAD<S> == SECOND_CACHE;
    static constexpr int64_t LARGE = 4096;  // bytes
    int64_t ahead_;
};

// A filter, one vector a tap: as many of them in registers as the sums leave.
template <class T, int K, int COLUMNS>
class Filters {
   public:
    HAMLET_INLINE explicit Filters(const Vector<T>* all) : all_(all) {
#pragma GCC unroll 32
        for (int tap = 0; tap < HELD; ++tap) held_[tap] = all[tap];
    }
    HAMLET_INLINE Vector<T> tap(int tap) const { return tap < HELD ? held_[tap] : all_[tap]; }

   private:
    static constexpr int HELD = std::max(1, std::min(K * K, VECTOR_REGISTERS - COLUMNS * (K + 1) - 8));
    const Vector<T>* all_;
    Vector<T> held_[HELD];
};

// The K output rows that the row of pixels at hand reaches, the first of them complete once it has been added.
//
// WHOLE: the lanes beyond a row's end are pixels of the next row. Masking them costs as much as their arithmetic; they may
// be wrong, for that row comes later.
template <class T, int K, int COLUMNS>
struct RollingSums {
    Vector<T> sums[COLUMNS][K];

    HAMLET_INLINE explicit RollingSums(Vector<T> start) {
#pragma GCC unroll 2
        for (int column = 0; column < COLUMNS; ++column)
#pragma GCC unroll 8
            for (int i = 0; i < K; ++i) sums[column][i] = start;
    }

    template <bool WHOLE, class S>
    HAMLET_INLINE void add(const S* at, int64_t reach, const Column<T>* columns, const Filters<T, K, COLUMNS>& filters) {
#pragma GCC unroll 8
        for (int x = 0; x < K; ++x) {
            Vector<T> pixels[COLUMNS];
#pragma GCC unroll 2
            for (int column = 0; column < COLUMNS; ++column) {
                const S* from = at + columns[column].offset + (x - K / 2) * reach;
                pixels[column] = in_register(WHOLE && x == K / 2 ? load_all<T>(from) : load_where(from, columns[column].pixels[x]));
            }
#pragma GCC unroll 8
            for (int y = 0; y < K; ++y) {
                const Vector<T> filter = filters.tap(y * K + x);
#pragma GCC unroll 2
                for (int column = 0; column < COLUMNS; ++column) sums[column][K - 1 - y] += filter * pixels[column];
            }
        }
    }

    template <bool WHOLE, class S>
    HAMLET_INLINE void write(S* to, const Column<T>* columns) const {
#pragma GCC unroll 2
        for (int column = 0; column < COLUMNS; ++column)
            if constexpr (WHOLE) store_all<T>(to + columns[column].offset, sums[column][0]);
            else store_where(to + columns[column].offset, zero_unless<T>(columns[column].pixels[K / 2], sums[column][0]),
                        columns[column].inside);
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

// Going down, each loaded vector serves the K output rows that it reaches. `ahead`: elements to what is needed next.
template <class T, class S, int K, int COLUMNS, bool WHOLE>
HAMLET_INLINE void roll_down(const Columns<T>& walk, int64_t first, const S* from, S* to, int64_t ahead,
                             const Vector<T>* all, Vector<T> start) {
    constexpr int R = K / 2;
    const NextPlane<S, K> next_plane(ahead);
    const int64_t rows = walk.rows, pitch = walk.pitch, reach = walk.reach;
    const Filters<T, K, COLUMNS> filters(all);
    // A copy, for a store to the image could change what only a pointer leads to.
    Column<T> body[COLUMNS];
#pragma GCC unroll 2
    for (int column = 0; column < COLUMNS; ++column) body[column] = walk.body[first + column];
    const Column<T>* const last = &walk.last[first];
    RollingSums<T, K, COLUMNS> sums(start);
    to -= R * pitch;
    for (int64_t row = 0; row + 1 < rows; ++row, from += pitch, to += pitch) {
        // The processor's own prefetching follows rows that are neighbours; in planes that are not large it does so well
        // enough, and small filters have no instruction to spare.
        if (K > 3 || (K > 1 && (reach > 1 || next_plane.large)))
#pragma GCC unroll 2
            for (int column = 0; column < COLUMNS; ++column) {
                next_plane.ask_for(from + body[column].offset);
                next_plane.template ask_for<1>(to + R * pitch + body[column].offset);
            }
        sums.template add<WHOLE>(from, reach, body, filters);
        if (row >= R) sums.template write<WHOLE>(to, body);
        sums.roll(start);
    }
    sums.template add<false>(from, reach, last, filters);
    for (int64_t row = rows - 1; row < rows + R; ++row, to += pitch) {
        if (row - R == rows - 1) sums.template write<false>(to, last);
        else if (row >= R) sums.template write<WHOLE>(to, body);
        sums.roll(start);
    }
}

// Columns that go down together: one alone would wait for its own multiply-adds.
constexpr int AT_ONCE = 2;

// One plane, its last columns first: what they leave wrong in the next row, the first ones put right. `ahead`: elements to
// the next plane.
template <class T, class S, int K, int COLUMNS = AT_ONCE>
void correlate_plane(const Columns<T>& walk, int64_t count, const S* from, S* to, int64_t ahead, const Vector<T>* filters,
                     Vector<T> start) {
    for (; count >= COLUMNS; count -= COLUMNS)
        if (walk.body[count - 1].whole)
            roll_down<T, S, K, COLUMNS, true>(walk, count - COLUMNS, from, to, ahead, filters, start);
        else roll_down<T, S, K, COLUMNS, false>(walk, count - COLUMNS, from, to, ahead, filters, start);
    if constexpr (COLUMNS > 1)
        if (count > 0) correlate_plane<T, S, K, 1>(walk, count, from, to, ahead, filters, start);
}

// sums[y][x] += the pixels moved by a tap times the gradient of the output, for the taps x of [FIRST, FIRST + COUNT).
// `ahead`: elements to what is needed next.
template <class T, class S, int K, int FIRST, int COUNT>
HAMLET_INLINE void weigh_down(const Columns<T>& walk, int64_t first, const S* input, const S* grad, int64_t ahead,
                              Vector<T>* total) {
    constexpr int R = K / 2;
    const NextPlane<S, K> next_plane(ahead);
    const int64_t rows = walk.rows, pitch = walk.pitch;
    const Column<T>*const body = &walk.body[first], *const last = &walk.last[first];
    input += body->offset + (FIRST - R) * walk.reach;
    grad += body->offset;
    // Gradients of the rows from R above to R below the row of pixels at hand.
    Vector<T> sums[K][COUNT], grads[K] = {};
#pragma GCC unroll 8
    for (int y = 0; y < K; ++y)
#pragma GCC unroll 8
        for (int x = 0; x < COUNT; ++x) sums[y][x] = total[y * K + FIRST + x];
    const auto next = [&](int64_t row) {
        return row < rows ? load_where(grad + row * pitch, (row + 1 < rows ? body : last)->pixels[R]) : Vector<T>{};
    };
#pragma GCC unroll 8
    for (int row = 0; row < R; ++row) grads[R + 1 + row] = next(row);
    for (int64_t row = 0; row < rows; ++row, input += pitch) {
        const Column<T>* column = row + 1 < rows ? body : last;
        if constexpr (FIRST == 0) {
            next_plane.ask_for(input);
            next_plane.ask_for(grad + row * pitch);
        }
#pragma GCC unroll 8
        for (int i = 0; i + 1 < K; ++i) grads[i] = grads[i + 1];
        grads[K - 1] = next(row + R);
#pragma GCC unroll 8
        for (int x = 0; x < COUNT; ++x) {
            const Vector<T> pixels = in_register(load_where(input + x * walk.reach, column->pixels[FIRST + x]));
#pragma GCC unroll 8
            for (int y = 0; y < K; ++y) sums[y][x] += pixels * grads[K - 1 - y];
        }
    }
#pragma GCC unroll 8
    for (int y = 0; y < K; ++y)
#pragma GCC unroll 8
        for (int x = 0; x < COUNT; ++x) total[y * K + FIRST + x] = sums[y][x];
}

template <class T, class S>
HAMLET_INLINE Vector<T> sum_down(const Columns<T>& walk, int64_t first, const S* grad) {
    Vector<T> total = {};
    for (int64_t row = 0; row < walk.rows; ++row) {
        const Column<T>& column = row + 1 < walk.rows ? walk.body[first] : walk.last[first];
        total += load_where(grad + row * walk.pitch + column.offset, column.pixels[walk.middle]);
    }
    return total;
}

}  // namespace hamlet::HAMLET_ISA
