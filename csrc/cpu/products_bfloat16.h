// The products of attention (products.h) on the matrix unit, from rows of bfloat16.
//
// Rows are packed in an order of channels in which two of them are paired up by the two instructions that exist for it: by
// fours, of each 32 channels the first, fifth, second, sixth and so on. Sums over channels do not depend on it.
#pragma once

#include "matrix.h"
#include "products.h"

namespace hamlet::HAMLET_ISA {

template <>
struct ProductsInUse<BFloat16> : matrix::InUse {};

// What one register of the matrix unit holds of a row.
constexpr int STEP = matrix::ROW_BYTES / 2;

struct alignas(64) MatrixRows {
    Vector<float> row[matrix::ROWS];
};

HAMLET_INLINE Vector<float> load_words(const BFloat16* from) {
    Vector<float> words;
    std::memcpy(&words, from, sizeof words);
    return words;
}

HAMLET_INLINE void store_words(BFloat16* to, Vector<float> words) { std::memcpy(to, &words, sizeof words); }

HAMLET_INLINE __mmask32 not_finite_words(Vector<float> words) {
    const __m512i exponent = _mm512_set1_epi16(0x7f80);
    return _mm512_cmpeq_epi16_mask(_mm512_and_si512((__m512i)words, exponent), exponent);
}

HAMLET_INLINE Vector<float> finite_or_zero_words(Vector<float> words) {
    return (Vector<float>)_mm512_maskz_mov_epi16(~not_finite_words(words), (__m512i)words);
}

// `count` elements, then zeros up to a whole register's row. Returns zeros, or NaN if an element is not finite.
HAMLET_INLINE Vector<float> read_padded(const BFloat16* from, int64_t count, BFloat16* to) {
    __mmask32 spoilt = 0;
    for (int64_t i = 0; i < count; i += STEP) {
        const __mmask32 some = count - i >= STEP ? ~__mmask32(0) : (__mmask32(1) << (count - i)) - 1;
        const __m512i words = _mm512_maskz_loadu_epi16(some, from + i);
        spoilt |= not_finite_words((Vector<float>)words);
        store_words(to + i, (Vector<float>)_mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), words));
    }
    return spoilt ? broadcast<float>(std::numeric_limits<float>::quiet_NaN()) : Vector<float>{};
}

HAMLET_INLINE Vector<float> not_finite(const BFloat16* row, int64_t pitch) {
    __mmask32 spoilt = 0;
    for (int64_t i = 0; i < pitch; i += STEP) spoilt |= not_finite_words(load_words(row + i));
    return spoilt ? broadcast<float>(std::numeric_limits<float>::quiet_NaN()) : Vector<float>{};
}

// Two packed rows of 32 channels as two rows of a right factor: the pairs of the first 16 channels, and of the others.
HAMLET_INLINE void pair_up(Vector<float> even, Vector<float> odd, Vector<float>& first, Vector<float>& others) {
    first = (Vector<float>)_mm512_unpacklo_epi16((__m512i)even, (__m512i)odd);
    others = (Vector<float>)_mm512_unpackhi_epi16((__m512i)even, (__m512i)odd);
}

// The tile's queries as right factors, one for each STEP of the channels: pairs of channels, a query in each lane.
inline void transpose(const BFloat16* rows, int64_t channels, BFloat16* to) {
    const int64_t pitch = padded<BFloat16>(channels);
    for (int64_t d = 0; d < pitch; d += STEP) {
        Vector<float> square[matrix::ROWS];
        for (int lane = 0; lane < matrix::ROWS; ++lane) square[lane] = load_words(rows + lane * pitch + d);
        transpose_square<float>(square);
        for (int i = 0; i < matrix::ROWS; ++i) store_words(to + (d / 2 + i) * STEP, square[i]);
    }
}

// Right factors, one for each 16 channels: pairs of queries, a channel in each lane.
inline void make_summands(const BFloat16* rows, int64_t channels, BFloat16* to) {
    const int64_t pitch = padded<BFloat16>(channels);
    for (int64_t d = 0; d < pitch; d += STEP)
        for (int i = 0; i < matrix::ROWS / 2; ++i) {
            Vector<float> first, others;
            pair_up(finite_or_zero_words(load_words(rows + 2 * i * pitch + d)),
                    finite_or_zero_words(load_words(rows + (2 * i + 1) * pitch + d)), first, others);
            BFloat16* const row = to + d * matrix::ROWS + i * STEP;
            store_words(row, first);
            store_words(row + matrix::ROWS / 2 * STEP, others);
        }
}

template <class Use>
HAMLET_INLINE void multiply(const BFloat16* queries, const KeyList<float>& keys, Rows<BFloat16> rows, int64_t channels,
                            const Use& use) {
    static_assert(matrix::ROWS <= ROWS_BEYOND);
    const int64_t pitch = padded<BFloat16>(channels), bytes = pitch * int64_t(sizeof(BFloat16));
    MatrixRows products;
    for (int run = 0; run < keys.runs; ++run)
        for (int first = keys.run_begin[run]; first < keys.run_begin[run + 1]; first += matrix::ROWS) {
            matrix::clear<matrix::SUM>();
            for (int64_t d = 0; d < pitch; d += STEP) {
                matrix::load<matrix::LEFT>(rows.at(keys.index[first]) + d, bytes);
                matrix::load<matrix::RIGHT>(queries + d * matrix::ROWS);
                matrix::multiply_add<matrix::SUM, matrix::LEFT, matrix::RIGHT>();
            }
            matrix::store<matrix::SUM>(&products);
            const int last = std::min(first + matrix::ROWS, keys.run_begin[run + 1]);
            for (int k = first; k < last; ++k) use(k, products.row[k - first]);
        }
}

// Weights of 32 keys as a left factor: a query in each row; 0 from `count` on.
HAMLET_INLINE void turn(const Vector<float>* weights, int count, MatrixRows& to) {
    alignas(64) constexpr uint16_t PAIRS[] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                              8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i pairs = _mm512_load_si512(PAIRS);
#pragma GCC unroll 16
    for (int i = 0; i < matrix::ROWS; ++i) {
        const Vector<float> even = 2 * i < count ? weights[2 * i] : Vector<float>{};
        const Vector<float> odd = 2 * i + 1 < count ? weights[2 * i + 1] : Vector<float>{};
        to.row[i] = (Vector<float>)_mm512_permutexvar_epi16(pairs, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
    }
    transpose_square<float>(to.row);
}

template <class T, bool FINITE>
inline void weigh(const KeyList<T>& keys, const Vector<T>* weights, Rows<BFloat16> rows, int64_t channels, T* to) {
    static_assert(STEP <= PADDING && CHUNK % STEP == 0);
    MatrixRows left[CHUNK / STEP], right[CHUNK / STEP][2];
    for (int first = 0; first < keys.count; first += STEP)
        turn(weights + first, std::min(keys.count - first, STEP), left[first / STEP]);
    const int64_t pitch = padded<T>(channels), bytes = pitch * int64_t(sizeof(T));
    for (int64_t d = 0; d < pitch; d += STEP) {
        for (int first = 0; first < keys.count; first += STEP)
#pragma GCC unroll 16
            for (int i = 0; i < matrix::ROWS; ++i) {
                Vector<float> even = load_words(rows.at(keys.index[first + 2 * i]) + d);
                Vector<float> odd = load_words(rows.at(keys.index[first + 2 * i + 1]) + d);
                if constexpr (!FINITE) even = finite_or_zero_words(even), odd = finite_or_zero_words(odd);
                pair_up(even, odd, right[first / STEP][0].row[i], right[first / STEP][1].row[i]);
            }
        const bool both = d + LANES<T> < pitch;
        matrix::load<matrix::SUM>(to + d, bytes);
        if (both) matrix::load<matrix::OTHER_SUM>(to + d + LANES<T>, bytes);
        for (int block = 0; block < ceiling(keys.count, STEP); ++block) {
            matrix::load<matrix::LEFT>(&left[block]);
            matrix::load<matrix::RIGHT>(&right[block][0]);
            matrix::multiply_add<matrix::SUM, matrix::LEFT, matrix::RIGHT>();
            matrix::load<matrix::RIGHT>(&right[block][1]);
            matrix::multiply_add<matrix::OTHER_SUM, matrix::LEFT, matrix::RIGHT>();
        }
        matrix::store<matrix::SUM>(to + d, bytes);
        if (both) matrix::store<matrix::OTHER_SUM>(to + d + LANES<T>, bytes);
    }
}

inline void scatter(const KeyList<float>& keys, const Vector<float>* weights, const BFloat16* queries, int64_t channels,
                    Rows<float> rows, float*) {
    const int64_t pitch = padded<float>(channels);
    for (int first = keys.row_begin; first < keys.row_end; first += matrix::ROWS) {
        const int count = std::min(keys.row_end - first, matrix::ROWS);
        alignas(64) __m256i left[matrix::ROWS];
#pragma GCC unroll 16
        for (int j = 0; j < matrix::ROWS; ++j) left[j] = (__m256i)_mm512_cvtneps_pbh(weights[first + j]);
        matrix::load<matrix::SHORT_LEFT>(left, sizeof *left);
        for (int64_t d = 0; d < pitch; d += LANES<float>) {
            MatrixRows products;
            matrix::clear<matrix::SUM>();
            matrix::load<matrix::SHORT_RIGHT>(queries + d * matrix::ROWS);
            matrix::multiply_add<matrix::SUM, matrix::SHORT_LEFT, matrix::SHORT_RIGHT>();
            matrix::store<matrix::SUM>(&products);
            for (int j = 0; j < count; ++j) {
                float* const row = rows.at(keys.index[first + j]) + d;
                store(row, load(row) + products.row[j]);
            }
        }
    }
}

}  // namespace hamlet::HAMLET_ISA
