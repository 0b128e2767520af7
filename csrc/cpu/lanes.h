// What moves numbers between the lanes of vectors: sums, transposition, alternation.
#pragma once

#include "simd.h"

namespace hamlet::HAMLET_ISA {

namespace detail {

// Of lanes that are a multiple of DISTANCE apart the sum, in each of them.
template <class T, int DISTANCE, int... I>
HAMLET_INLINE Vector<T> sum_beyond(Vector<T> a, std::integer_sequence<int, I...> lanes) {
    if constexpr (DISTANCE >= LANES<T>) return a;
    else return sum_beyond<T, 2 * DISTANCE>(a + __builtin_shufflevector(a, a, (I ^ DISTANCE)...), lanes);
}

}  // namespace detail

template <class T>
HAMLET_INLINE T sum(Vector<T> a) {
    return detail::sum_beyond<T, 1>(a, std::make_integer_sequence<int, LANES<T>>())[0];
}

namespace detail {

// Of two rows of a matrix, `distance` apart, the lanes that lie on the same side, and those that change sides.
template <class T, int DISTANCE, int... I>
HAMLET_INLINE void exchange(Vector<T>& a, Vector<T>& b, std::integer_sequence<int, I...>) {
    const Vector<T> upper = __builtin_shufflevector(a, b, (I & DISTANCE ? I - DISTANCE + LANES<T> : I)...);
    b = __builtin_shufflevector(a, b, (I & DISTANCE ? I + LANES<T> : I + DISTANCE)...);
    a = upper;
}

template <class T, int DISTANCE>
HAMLET_INLINE void exchange_rows(Vector<T>* rows) {
    if constexpr (DISTANCE < LANES<T>) {
#pragma GCC unroll 16
        for (int row = 0; row < LANES<T>; ++row)
            if (!(row & DISTANCE))
                exchange<T, DISTANCE>(rows[row], rows[row + DISTANCE], std::make_integer_sequence<int, LANES<T>>());
        exchange_rows<T, 2 * DISTANCE>(rows);
    }
}

template <class T, int... I>
HAMLET_INLINE void separate(Vector<T>& a, Vector<T>& b, std::integer_sequence<int, I...>) {
    const Vector<T> even = __builtin_shufflevector(a, b, 2 * I...);
    b = __builtin_shufflevector(a, b, (2 * I + 1)...);
    a = even;
}

template <class T, int... I>
HAMLET_INLINE void interleave(Vector<T>& a, Vector<T>& b, std::integer_sequence<int, I...>) {
    constexpr int HALF = LANES<T> / 2;
    const Vector<T> first = __builtin_shufflevector(a, b, (I % 2 * LANES<T> + I / 2)...);
    b = __builtin_shufflevector(a, b, (I % 2 * LANES<T> + HALF + I / 2)...);
    a = first;
}

}  // namespace detail

// Of the lanes of two vectors, one after the other: the even ones, and the odd ones.
template <class T>
HAMLET_INLINE void separate(Vector<T>& a, Vector<T>& b) {
    detail::separate<T>(a, b, std::make_integer_sequence<int, LANES<T>>());
}

// The reverse of `separate`.
template <class T>
HAMLET_INLINE void interleave(Vector<T>& even, Vector<T>& odd) {
    detail::interleave<T>(even, odd, std::make_integer_sequence<int, LANES<T>>());
}

namespace detail {

template <class T, int DISTANCE, int COUNT>
HAMLET_INLINE Vector<T> sum_each(const Vector<T>* rows) {
    constexpr std::make_integer_sequence<int, LANES<T>> lanes;
    if constexpr (COUNT == 1) {
        return sum_beyond<T, DISTANCE>(rows[0], lanes);
    } else {
        Vector<T> halves[COUNT / 2];
#pragma GCC unroll 8
        for (int i = 0; i < COUNT / 2; ++i) {
            Vector<T> a = rows[2 * i], b = rows[2 * i + 1];
            exchange<T, DISTANCE>(a, b, lanes);
            halves[i] = a + b;
        }
        return sum_each<T, 2 * DISTANCE, COUNT / 2>(halves);
    }
}

}  // namespace detail

// The sum of the lanes of each vector, in as many first lanes. Their number is a power of two.
template <class T, int COUNT>
HAMLET_INLINE Vector<T> sum_each(const Vector<T> (&rows)[COUNT]) {
    static_assert(COUNT <= LANES<T> && (COUNT & (COUNT - 1)) == 0);
    return detail::sum_each<T, 1, COUNT>(rows);
}

// A square matrix of vectors, in place.
template <class T>
HAMLET_INLINE void transpose_square(Vector<T> (&rows)[LANES<T>]) {
    detail::exchange_rows<T, 1>(rows);
}

}  // namespace hamlet::HAMLET_ISA
