// The matrix products of a grouped convolution, a warp's share of them: pixels and filters, and gradients and pixels.
// Sums are in mma's layout. Two-byte elements and TF32 run on the matrix units, other float32 on the lanes.
#pragma once

#include "grouped_plan.h"
#include "products.h"

namespace hamlet::cuda {

// Where a warp's columns of the filters' gradient are: every `across`th of `pairs` of units, from `first` on.
struct Columns {
    int first, across, pairs;

    HAMLET_DEVICE int pair(int i) const { return first + i * across; }
    HAMLET_DEVICE bool has(int i) const { return pair(i) < pairs; }
};

// The staged gradients of some outputs at a tile's pixels. Outputs beyond the last unit are read as those of the last;
// what is summed of them is not used.
template <class T>
struct Gradients {
    static constexpr int PLANE = plane_of(TILE_PIXELS);
    Shared<T> data;
    int units;

    HAMLET_DEVICE int place(int unit, int pixel) const { return (min(unit, units - 1) * PLANE + pixel) * UNIT; }
};

// Two-byte elements.
template <class T, bool TF32>
struct GroupedProducts {
    static constexpr int HELD = 1;    // rows of 16 whose base a lane needs
    static constexpr int DEPTH = 16;  // pixels of a product of the filters' gradient

    HAMLET_DEVICE static int row(int) { return lane_index() % 16; }

    // sums += the units of pixels, from their bases on, times N * 8 outputs' filters.
    template <int M, int N>
    HAMLET_DEVICE static void correlate(Shared<T> image, const int (&bases)[M][HELD], Shared<int> reach,
                                        Shared<T> filters, int units, float (&sums)[M][N][4]) {
        constexpr int PLANE = (N * 8 + 1) * UNIT;
        const int lane = lane_index();
        const int own = lane / 8 % 2 * PLANE + (lane % 8 + (N > 1 ? lane / 16 * 8 : 0)) * UNIT;
        HAMLET_ROLLED
        for (int unit = 0; unit < units; unit += 2) {
            const int offset = reach.load(unit + lane / 16);
            uint32_t found[(N + 1) / 2][4];
            HAMLET_UNROLL
            for (int n = 0; n < N; n += 2)
                load_matrices<false>(found[n / 2], filters, own + unit * PLANE + n * 8 * UNIT);
            HAMLET_UNROLL
            for (int m = 0; m < M; ++m) {
                uint32_t part[4];
                load_matrices<false>(part, image, bases[m][0] + offset);
                // The second of the last two units may not be there; what is read instead need not be finite.
                if (unit + 1 == units) part[2] = part[3] = 0;
                HAMLET_UNROLL
                for (int n = 0; n < N; ++n)
                    mma<T>(sums[m][n], part, {found[n / 2][n % 2 * 2], found[n / 2][n % 2 * 2 + 1]});
            }
        }
    }

    // How far the units reach that a lane reads for its warp's columns.
    template <int N>
    struct Reach {
        int offset[N / 2];

        HAMLET_DEVICE Reach(Shared<int> reach, const Columns& columns) {
            HAMLET_UNROLL
            for (int i = 0; i < N / 2; ++i)
                offset[i] = columns.has(i) ? reach.load(columns.pair(i) * 2 + lane_index() / 16) : 0;
        }
    };

    // sums += DEPTH pixels' gradients of 16 * M outputs, times the units of the source that the taps find from there.
    template <int M, int N>
    HAMLET_DEVICE static void weigh(const Gradients<T>& grads, Shared<T> image, Shared<int> bases, int first,
                                    const Reach<N>& reach, const Columns& columns, float (&sums)[M][N][4],
                                    float (&of_bias)[M][2]) {
        const int lane = lane_index();
        uint32_t part[M][4];
        HAMLET_UNROLL
        for (int m = 0; m < M; ++m) {
            load_matrices<true>(part[m], grads.data,
                                grads.place(2 * m + lane / 8 % 2, first + lane / 16 * 8 + lane % 8));
            HAMLET_UNROLL
            for (int i = 0; i < 4; ++i)
                of_bias[m][i % 2] += number(T{uint16_t(part[m][i])}) + number(T{uint16_t(part[m][i] >> 16)});
        }
        const int base = bases.load(first + lane % 16);
        HAMLET_UNROLL
        for (int i = 0; i < N / 2; ++i) {
            if (!columns.has(i)) break;
            uint32_t found[4];
            load_matrices<true>(found, image, base + reach.offset[i]);
            HAMLET_UNROLL
            for (int m = 0; m < M; ++m) {
                mma<T>(sums[m][2 * i], part[m], {found[0], found[1]});
                mma<T>(sums[m][2 * i + 1], part[m], {found[2], found[3]});
            }
        }
    }
};

// What both kinds of float32 have in common.
struct FloatProducts {
    static constexpr int HELD = 2, DEPTH = 8;

    HAMLET_DEVICE static int row(int held) { return lane_index() / 4 + held * 8; }

    template <int N>
    struct Reach {
        int offset[N];

        HAMLET_DEVICE Reach(Shared<int> reach, const Columns& columns) {
            HAMLET_UNROLL
            for (int i = 0; i < N; ++i)
                offset[i] = columns.has(i / 2) ? reach.load(columns.pair(i / 2) * 2 + i % 2) : 0;
        }
    };
};

// float32 rounded to tf32. The inner dimension's order is free: a lane takes neighbours, which it reads together.
template <>
struct GroupedProducts<float, true> : FloatProducts {
    template <int M, int N>
    HAMLET_DEVICE static void correlate(Shared<float> image, const int (&bases)[M][HELD], Shared<int> reach,
                                        Shared<float> filters, int units, float (&sums)[M][N][4]) {
        constexpr int PLANE = (N * 8 + 1) * UNIT;
        const int own = lane_index() / 4 * UNIT + lane_index() % 4 * 2;
        HAMLET_ROLLED
        for (int unit = 0; unit < units; ++unit) {
            const int offset = reach.load(unit) + lane_index() % 4 * 2;
            Pack<float, 2> found[N];
            HAMLET_UNROLL
            for (int n = 0; n < N; ++n) found[n] = filters.template load_pack<2>(own + unit * PLANE + n * 8 * UNIT);
            HAMLET_UNROLL
            for (int m = 0; m < M; ++m) {
                const auto upper = image.template load_pack<2>(bases[m][0] + offset);
                const auto lower = image.template load_pack<2>(bases[m][1] + offset);
                const uint32_t part[4] = {tf32(upper.element[0]), tf32(lower.element[0]), tf32(upper.element[1]),
                                          tf32(lower.element[1])};
                HAMLET_UNROLL
                for (int n = 0; n < N; ++n)
                    mma<float>(sums[m][n], part, {tf32(found[n].element[0]), tf32(found[n].element[1])});
            }
        }
    }

    template <int M, int N>
    HAMLET_DEVICE static void weigh(const Gradients<float>& grads, Shared<float> image, Shared<int> bases, int first,
                                    const Reach<N>& reach, const Columns& columns, float (&sums)[M][N][4],
                                    float (&of_bias)[M][2]) {
        const int row = lane_index() / 4, member = lane_index() % 4;
        uint32_t part[M][4];
        HAMLET_UNROLL
        for (int m = 0; m < M; ++m)
            HAMLET_UNROLL
            for (int i = 0; i < 4; ++i) {
                const int pixel = first + member + i / 2 * 4;
                const float found = grads.data.load(grads.place(2 * m + i % 2, pixel) + row);
                of_bias[m][i % 2] += found;
                part[m][i] = tf32(found);
            }
        const int near = bases.load(first + member) + row, far = bases.load(first + member + 4) + row;
        HAMLET_UNROLL
        for (int i = 0; i < N; ++i) {
            if (!columns.has(i / 2)) break;
            const uint32_t found[2] = {tf32(image.load(near + reach.offset[i])),
                                       tf32(image.load(far + reach.offset[i]))};
            HAMLET_UNROLL
            for (int m = 0; m < M; ++m) mma<float>(sums[m][i], part[m], found);
        }
    }
};

// float32 as it is.
template <>
struct GroupedProducts<float, false> : FloatProducts {
    template <int M, int N>
    HAMLET_DEVICE static void correlate(Shared<float> image, const int (&bases)[M][HELD], Shared<int> reach,
                                        Shared<float> filters, int units, float (&sums)[M][N][4]) {
        constexpr int PLANE = (N * 8 + 1) * UNIT;
        const int own = lane_index() % 4 * 2 * UNIT;
        HAMLET_ROLLED
        for (int k = 0; k < units * 2; ++k) {
            const int half = k % 2 * 4, offset = reach.load(k / 2) + half;
            Pack<float, 4> pixels[M][2];
            HAMLET_UNROLL
            for (int m = 0; m < M; ++m)
                HAMLET_UNROLL
                for (int r = 0; r < 2; ++r) pixels[m][r] = image.template load_pack<4>(bases[m][r] + offset);
            HAMLET_UNROLL
            for (int i = 0; i < N * 2; ++i) {
                const int n = i / 2, e = i % 2;
                const auto found = filters.template load_pack<4>(own + k / 2 * PLANE + (n * 8 + e) * UNIT + half);
                HAMLET_UNROLL
                for (int m = 0; m < M; ++m)
                    HAMLET_UNROLL
                    for (int r = 0; r < 2; ++r)
                        HAMLET_UNROLL
                        for (int c = 0; c < 4; ++c)
                            sums[m][n][r * 2 + e] += pixels[m][r].element[c] * found.element[c];
            }
        }
    }

    template <int M, int N>
    HAMLET_DEVICE static void weigh(const Gradients<float>& grads, Shared<float> image, Shared<int> bases, int first,
                                    const Reach<N>& reach, const Columns& columns, float (&sums)[M][N][4],
                                    float (&of_bias)[M][2]) {
        const int row = lane_index() / 4, member = lane_index() % 4;
        HAMLET_ROLLED
        for (int pixel = first; pixel < first + DEPTH; ++pixel) {
            float given[M][2];
            HAMLET_UNROLL
            for (int m = 0; m < M; ++m)
                HAMLET_UNROLL
                for (int r = 0; r < 2; ++r) {
                    given[m][r] = grads.data.load(grads.place(2 * m + r, pixel) + row);
                    // The lanes of a row have the same gradients; each adds its share of the pixels.
                    if (pixel % 4 == member) of_bias[m][r] += given[m][r];
                }
            const int base = bases.load(pixel) + member * 2;
            HAMLET_UNROLL
            for (int i = 0; i < N; ++i) {
                if (!columns.has(i / 2)) break;
                const auto found = image.template load_pack<2>(base + reach.offset[i]);
                HAMLET_UNROLL
                for (int m = 0; m < M; ++m)
                    HAMLET_UNROLL
                    for (int r = 0; r < 2; ++r)
                        HAMLET_UNROLL
                        for (int e = 0; e < 2; ++e) sums[m][i][r * 2 + e] += given[m][r] * found.element[e];
            }
        }
    }
};

}  // namespace hamlet::cuda
