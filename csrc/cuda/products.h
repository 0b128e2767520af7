// The two matrix products of an attention, for a warp that owns 16 rows of both results. Results, and the weights of
// the second product, are in the layout of mma's sums: of every 8 columns a lane has columns 2 (l % 4) and the next, of
// rows l / 4 and l / 4 + 8. Two-byte elements and TF32 run on the matrix units, other float32 on the lanes.
#pragma once

#include "matrix.h"

namespace hamlet::cuda {

constexpr int ROWS = 16, PADDING = 8;

// Elements between rows in shared memory: such rows begin at different banks.
template <int D>
constexpr int PITCH = D + PADDING;

HAMLET_DEVICE int lane_index() { return thread_index() % WARP; }

// Two-byte elements.
template <class T, int D, bool TF32>
struct Products {
    static constexpr int DEPTH = 16;

    // 16 rows of D elements as the left side; HELD, they stay in registers.
    template <bool HELD>
    struct Left {
        Shared<T> rows;
        uint32_t part[HELD ? D / DEPTH : 1][4];

        HAMLET_DEVICE explicit Left(Shared<T> from) : rows(from) {
            if constexpr (HELD) {
                HAMLET_UNROLL
                for (int k = 0; k < D / DEPTH; ++k) load_matrices<false>(part[k], rows, place(k));
            }
        }
        HAMLET_DEVICE static int place(int k) {
            return lane_index() % ROWS * PITCH<D> + k * DEPTH + lane_index() / ROWS * 8;
        }
        HAMLET_DEVICE void read(int k, uint32_t (&into)[4]) const {
            if constexpr (HELD) {
                HAMLET_UNROLL
                for (int i = 0; i < 4; ++i) into[i] = part[k][i];
            } else {
                load_matrices<false>(into, rows, place(k));
            }
        }
    };

    // sums += left times COUNT rows, transposed.
    template <bool HELD, int COUNT>
    HAMLET_DEVICE static void scores(const Left<HELD>& left, Shared<T> rows, float (&sums)[COUNT][4]) {
        const int lane = lane_index(), first = (lane / 16 * 8 + lane % 8) * PITCH<D> + lane / 8 % 2 * 8;
        HAMLET_UNROLL
        for (int k = 0; k < D / DEPTH; ++k) {
            uint32_t part[4];
            left.read(k, part);
            HAMLET_UNROLL
            for (int n = 0; n < COUNT; n += 2) {
                uint32_t found[4];
                load_matrices<false>(found, rows, first + n * 8 * PITCH<D> + k * DEPTH);
                mma<T>(sums[n], part, {found[0], found[1]});
                mma<T>(sums[n + 1], part, {found[2], found[3]});
            }
        }
    }

    // sums += weights times COUNT * 8 rows.
    template <int COUNT>
    HAMLET_DEVICE static void add(const float (&weights)[COUNT][4], Shared<T> rows, float (&sums)[D / 8][4]) {
        const int first = lane_index() % 16 * PITCH<D> + lane_index() / 16 * 8;
        HAMLET_UNROLL
        for (int k = 0; k < COUNT; k += 2) {
            const uint32_t part[4] = {pair<T>(weights[k][0], weights[k][1]), pair<T>(weights[k][2], weights[k][3]),
                                      pair<T>(weights[k + 1][0], weights[k + 1][1]),
                                      pair<T>(weights[k + 1][2], weights[k + 1][3])};
            HAMLET_UNROLL
            for (int n = 0; n < D / 8; n += 2) {
                uint32_t found[4];
                load_matrices<true>(found, rows, first + k * 8 * PITCH<D> + n * 8);
                mma<T>(sums[n], part, {found[0], found[1]});
                mma<T>(sums[n + 1], part, {found[2], found[3]});
            }
        }
    }
};

// float32 rounded to tf32. The inner dimension's order is free: a lane takes neighbours, which it reads together.
template <int D>
struct Products<float, D, true> {
    template <bool HELD>
    struct Left {
        Shared<float> rows;

        HAMLET_DEVICE explicit Left(Shared<float> from) : rows(from) {}
    };

    HAMLET_DEVICE static Pack<float, 2> neighbours(Shared<float> rows, int row, int k) {
        return rows.template load_pack<2>(row * PITCH<D> + k * 8 + lane_index() % 4 * 2);
    }

    template <bool HELD, int COUNT>
    HAMLET_DEVICE static void scores(const Left<HELD>& left, Shared<float> rows, float (&sums)[COUNT][4]) {
        const int row = lane_index() / 4;
        HAMLET_UNROLL_BY(4)
        for (int k = 0; k < D / 8; ++k) {
            const auto upper = neighbours(left.rows, row, k), lower = neighbours(left.rows, row + 8, k);
            const uint32_t part[4] = {tf32(upper.element[0]), tf32(lower.element[0]), tf32(upper.element[1]),
                                      tf32(lower.element[1])};
            HAMLET_UNROLL
            for (int n = 0; n < COUNT; ++n) {
                const auto found = neighbours(rows, n * 8 + row, k);
                mma<float>(sums[n], part, {tf32(found.element[0]), tf32(found.element[1])});
            }
        }
    }

    template <int COUNT>
    HAMLET_DEVICE static void add(const float (&weights)[COUNT][4], Shared<float> rows, float (&sums)[D / 8][4]) {
        HAMLET_UNROLL
        for (int k = 0; k < COUNT; ++k) {
            const uint32_t part[4] = {tf32(weights[k][0]), tf32(weights[k][2]), tf32(weights[k][1]),
                                      tf32(weights[k][3])};
            const int first = (k * 8 + lane_index() % 4 * 2) * PITCH<D> + lane_index() / 4;
            HAMLET_UNROLL
            for (int n = 0; n < D / 8; ++n)
                mma<float>(sums[n], part,
                           {tf32(rows.load(first + n * 8)), tf32(rows.load(first + n * 8 + PITCH<D>))});
        }
    }
};

// float32 as it is.
template <int D>
struct Products<float, D, false> {
    template <bool HELD>
    struct Left {
        Shared<float> rows;

        HAMLET_DEVICE explicit Left(Shared<float> from) : rows(from) {}
    };

    template <bool HELD, int COUNT>
    HAMLET_DEVICE static void scores(const Left<HELD>& left, Shared<float> rows, float (&sums)[COUNT][4]) {
        const int row = lane_index() / 4, column = lane_index() % 4 * 2;
        HAMLET_ROLLED
        for (int k = 0; k < D; k += 4) {
            Pack<float, 4> own[2];
            HAMLET_UNROLL
            for (int r = 0; r < 2; ++r) own[r] = left.rows.template load_pack<4>((row + r * 8) * PITCH<D> + k);
            HAMLET_UNROLL
            for (int n = 0; n < COUNT; ++n)
                HAMLET_UNROLL
                for (int i = 0; i < 2; ++i) {
                    const auto found = rows.template load_pack<4>((n * 8 + column + i) * PITCH<D> + k);
                    HAMLET_UNROLL
                    for (int r = 0; r < 2; ++r)
                        HAMLET_UNROLL
                        for (int e = 0; e < 4; ++e) sums[n][r * 2 + i] += own[r].element[e] * found.element[e];
                }
        }
    }

    template <int COUNT>
    HAMLET_DEVICE static void add(const float (&weights)[COUNT][4], Shared<float> rows, float (&sums)[D / 8][4]) {
        const int lane = lane_index(), column = lane % 4 * 2;
        HAMLET_UNROLL
        for (int k = 0; k < COUNT; ++k) {
            HAMLET_ROLLED
            for (int owner = 0; owner < 4; ++owner) {
                HAMLET_UNROLL
                for (int i = 0; i < 2; ++i) {
                    const float upper = shuffle(weights[k][i], lane / 4 * 4 + owner);
                    const float lower = shuffle(weights[k][2 + i], lane / 4 * 4 + owner);
                    const int from = (k * 8 + owner * 2 + i) * PITCH<D> + column;
                    HAMLET_UNROLL
                    for (int n = 0; n < D / 8; ++n) {
                        const auto found = rows.template load_pack<2>(from + n * 8);
                        HAMLET_UNROLL
                        for (int e = 0; e < 2; ++e) {
                            sums[n][e] += upper * found.element[e];
                            sums[n][2 + e] += lower * found.element[e];
                        }
                    }
                }
            }
        }
    }
};

}  // namespace hamlet::cuda
