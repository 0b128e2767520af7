// Rows of storage (float32, float64, bfloat16, float16) to and from rows of the dtype of accumulation.
#pragma once

#include "../view.h"
#include "lanes.h"

namespace hamlet::HAMLET_ISA {

// Elements of two bytes as they are stored.
struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

HAMLET_INLINE float from_bfloat16(uint16_t bits) {
    const uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

HAMLET_INLINE uint16_t to_bfloat16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    // To nearest, ties to even; a NaN must not round to infinity.
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

template <class T>
inline void read_half(const uint16_t* from, T* to, int64_t count) {
    int64_t i = 0;
#if defined(__F16C__)
    if constexpr (sizeof(T) == 4)
        for (; i + 8 <= count; i += 8)
            _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
#endif
    for (; i < count; ++i) {
        _Float16 half;
        std::memcpy(&half, from + i, 2);
        to[i] = T(float(half));
    }
}

template <class T>
inline void write_half(const T* from, uint16_t* to, int64_t count) {
    int64_t i = 0;
#if defined(__F16C__)
    if constexpr (sizeof(T) == 4)
        for (; i + 8 <= count; i += 8)
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), 0));
#endif
    for (; i < count; ++i) {
        const _Float16 half = _Float16(float(from[i]));
        std::memcpy(to + i, &half, 2);
    }
}

template <class T>
HAMLET_INLINE void copy_row(const T* __restrict from, T* __restrict to, int64_t count) {
    int64_t i = 0;
    for (; i + LANES<T> <= count; i += LANES<T>) store(to + i, load(from + i));
    if (i < count) store_first(to + i, load_first(from + i, count - i), count - i);
}

// One element of storage as a number, and back.
template <class T, class S>
HAMLET_INLINE T number_of(S stored) {
    if constexpr (std::is_same_v<S, BFloat16>) return T(from_bfloat16(stored.bits));
    else if constexpr (std::is_same_v<S, Float16>) {
        T value;
        read_half(&stored.bits, &value, 1);
        return value;
    } else return T(stored);
}

template <class T, class S>
HAMLET_INLINE void set_number(S& stored, T value) {
    if constexpr (std::is_same_v<S, BFloat16>) stored.bits = to_bfloat16(float(value));
    else if constexpr (std::is_same_v<S, Float16>) write_half(&value, &stored.bits, 1);
    else stored = S(value);
}

// Call `run` with a null pointer to the type of storage.
template <class Run>
inline void with_type(DType dtype, const Run& run) {
    switch (dtype) {
        case DType::float32: return run(static_cast<float*>(nullptr));
        case DType::float64: return run(static_cast<double*>(nullptr));
        case DType::bfloat16: return run(static_cast<BFloat16*>(nullptr));
        case DType::float16: return run(static_cast<Float16*>(nullptr));
    }
}

// `count` elements at `offset` of a tensor's data, all next to each other.
template <class T>
inline void read_row(const View& view, int64_t offset, T* __restrict to, int64_t count) {
    switch (view.dtype) {
        case DType::float32: {
            const float* from = reinterpret_cast<const float*>(view.data) + offset;
            if constexpr (std::is_same_v<T, float>) copy_row(from, to, count);
            else
                for (int64_t i = 0; i < count; ++i) to[i] = T(from[i]);
            break;
        }
        case DType::float64: {
            const double* from = reinterpret_cast<const double*>(view.data) + offset;
            if constexpr (std::is_same_v<T, double>) copy_row(from, to, count);
            else
                for (int64_t i = 0; i < count; ++i) to[i] = T(from[i]);
            break;
        }
        case DType::bfloat16: {
            const uint16_t* from = reinterpret_cast<const uint16_t*>(view.data) + offset;
            for (int64_t i = 0; i < count; ++i) to[i] = T(from_bfloat16(from[i]));
            break;
        }
        case DType::float16: read_half(reinterpret_cast<const uint16_t*>(view.data) + offset, to, count); break;
    }
}

template <class T>
inline void write_row(const View& view, int64_t offset, const T* __restrict from, int64_t count) {
    switch (view.dtype) {
        case DType::float32: {
            float* to = reinterpret_cast<float*>(view.data) + offset;
            if constexpr (std::is_same_v<T, float>) copy_row(from, to, count);
            else
                for (int64_t i = 0; i < count; ++i) to[i] = float(from[i]);
            break;
        }
        case DType::float64: {
            double* to = reinterpret_cast<double*>(view.data) + offset;
            if constexpr (std::is_same_v<T, double>) copy_row(from, to, count);
            else
                for (int64_t i = 0; i < count; ++i) to[i] = double(from[i]);
            break;
        }
        case DType::bfloat16: {
            uint16_t* to = reinterpret_cast<uint16_t*>(view.data) + offset;
            for (int64_t i = 0; i < count; ++i) to[i] = to_bfloat16(float(from[i]));
            break;
        }
        case DType::float16: write_half(from, reinterpret_cast<uint16_t*>(view.data) + offset, count); break;
    }
}

template <class T>
inline T read_one(const View& view, int64_t offset) {
    T value{};
    with_type(view.dtype, [&](auto* storage) {
        value = number_of<T>(reinterpret_cast<decltype(storage)>(view.data)[offset]);
    });
    return value;
}

template <class T>
inline void write_one(const View& view, int64_t offset, T value) {
    with_type(view.dtype,
              [&](auto* storage) { set_number(reinterpret_cast<decltype(storage)>(view.data)[offset], value); });
}

// The same for the dtypes that are accumulated as T.
template <class T, class Run>
inline void with_storage(DType dtype, const Run& run) {
    if constexpr (sizeof(T) == 8) return run(static_cast<T*>(nullptr));
    else switch (dtype) {
        case DType::bfloat16: return run(static_cast<BFloat16*>(nullptr));
        case DType::float16: return run(static_cast<Float16*>(nullptr));
        default: return run(static_cast<T*>(nullptr));
    }
}

namespace detail {

typedef uint16_t Halves __attribute__((vector_size(2 * LANES<float>)));

// AVX2 has no masked loads of two bytes, and lane by lane takes several times as long. A sanitizer would object.
#if defined(__AVX2__) && !defined(__AVX512F__) && !defined(HAMLET_DEBUG)
constexpr bool READS_BEYOND = true;
#else
constexpr bool READS_BEYOND = false;
#endif

// The lanes of the mask; zeros in the others, or where it READS_BEYOND them anything.
HAMLET_INLINE Halves load_lanes(const uint16_t* from, Mask<float> mask) {
    Halves bits = {};
#if defined(__AVX512F__)
    bits = (Halves)_mm256_maskz_loadu_epi16(mask, from);
#else
    // All of a page can be read that holds one lane of the mask.
    constexpr uintptr_t PAGE = 4096;
    const bool readable =
        READS_BEYOND ? any<float>(mask) && uintptr_t(from) % PAGE <= PAGE - sizeof bits : every<float>(mask);
    if (readable) std::memcpy(&bits, from, sizeof bits);
    else
        for (int lane = 0; lane < LANES<float>; ++lane)
            if (mask[lane]) bits[lane] = from[lane];
#endif
    return bits;
}

HAMLET_INLINE void store_where(uint16_t* to, Halves bits, Mask<float> mask) {
#if defined(__AVX512F__)
    _mm256_mask_storeu_epi16(to, mask, (__m256i)bits);
#else
    if (every<float>(mask)) std::memcpy(to, &bits, sizeof bits);
    else
        for (int lane = 0; lane < LANES<float>; ++lane)
            if (mask[lane]) to[lane] = bits[lane];
#endif
}

}  // namespace detail

#if defined(__AVX512F__)
// Of the words of a vector, which go where: to the upper halves of the lanes, and back.
alignas(64) inline constexpr uint16_t UPPER_HALVES[32] = {0, 0, 0, 1, 0, 2,  0, 3,  0, 4,  0, 5,  0, 6,  0, 7,
                                                          0, 8, 0, 9, 0, 10, 0, 11, 0, 12, 0, 13, 0, 14, 0, 15};
alignas(64) inline constexpr uint16_t FROM_UPPER_HALVES[32] = {1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
#endif

// The numbers that a vector's elements stand for, stored as S.
template <class S>
    requires(sizeof(S) == 2)
HAMLET_INLINE Vector<float> numbers_of(detail::Halves bits) {
    if constexpr (std::is_same_v<S, BFloat16>) {
#if defined(__AVX512F__)
        return (Vector<float>)_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, _mm512_load_si512(UPPER_HALVES),
                                                             _mm512_castsi256_si512((__m256i)bits));
#else
        return (Vector<float>)(__builtin_convertvector(bits, Vector<uint32_t>) << 16);
#endif
    } else {
#if defined(__AVX512F__)
        return _mm512_cvtph_ps((__m256i)bits);
#elif defined(__F16C__)
        return _mm256_cvtph_ps((__m128i)bits);
#else
        alignas(64) float values[LANES<float>];
        read_half(reinterpret_cast<const uint16_t*>(&bits), values, LANES<float>);
        return load(values);
#endif
    }
}

template <class S>
    requires(sizeof(S) == 2)
HAMLET_INLINE Vector<float> load_where(const S* from, Mask<float> mask) {
    const Vector<float> numbers = numbers_of<S>(detail::load_lanes(&from->bits, mask));
    return detail::READS_BEYOND ? zero_unless<float>(mask, numbers) : numbers;
}

HAMLET_INLINE void store_where(BFloat16* to, Vector<float> vector, Mask<float> mask) {
    // To nearest, ties to even; a NaN must not round to infinity.
#if defined(__AVX512F__)
    const __m512i bits = (__m512i)vector, below_half = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
    const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
    const __mmask16 not_a_number = _mm512_cmp_ps_mask(vector, vector, _CMP_UNORD_Q);
    const __m512i rounded = _mm512_mask_add_epi32(below_half, odd, below_half, _mm512_set1_epi32(1));
    const __m512i chosen = _mm512_mask_mov_epi32(rounded, not_a_number, _mm512_set1_epi32(0x7fc00000));
    const __m512i halves = _mm512_permutexvar_epi16(_mm512_load_si512(FROM_UPPER_HALVES), chosen);
    detail::store_where(&to->bits, (detail::Halves)_mm512_castsi512_si256(halves), mask);
#else
    using Bits = Vector<uint32_t>;
    const Bits bits = (Bits)vector, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Bits chosen = vector == vector ? rounded : Bits{} + 0x7fc0;
    detail::store_where(&to->bits, __builtin_convertvector(chosen, detail::Halves), mask);
#endif
}

HAMLET_INLINE void store_where(Float16* to, Vector<float> vector, Mask<float> mask) {
    detail::Halves bits;
#if defined(__AVX512F__)
    bits = (detail::Halves)_mm512_cvtps_ph(vector, 0);
#elif defined(__F16C__)
    bits = (detail::Halves)_mm256_cvtps_ph(vector, 0);
#else
    alignas(64) float values[LANES<float>];
    store(values, vector);
    write_half(values, reinterpret_cast<uint16_t*>(&bits), LANES<float>);
#endif
    detail::store_where(&to->bits, bits, mask);
}

template <class T, class S>
HAMLET_INLINE Vector<T> load_all(const S* from) {
    if constexpr (std::is_same_v<S, T>) return load(from);
    else {
        detail::Halves bits;
        std::memcpy(&bits, from, sizeof bits);
        return numbers_of<S>(bits);
    }
}

template <class T, class S>
HAMLET_INLINE void store_all(S* to, Vector<T> vector) {
    if constexpr (std::is_same_v<S, T>) store(to, vector);
    else store_where(to, vector, first_lanes<T>(LANES<T>));
}

// `count` elements, then zeros up to a whole vector. Returns zeros, and NaN in a lane that read what is not finite.
template <class T, class S>
HAMLET_INLINE Vector<T> read_padded(const S* from, int64_t count, T* to) {
    Vector<T> nothing = {};
    const auto take = [&](int64_t i, Vector<T> vector) {
        nothing += vector - vector;
        store(to + i, vector);
    };
    int64_t i = 0;
    for (; i + LANES<T> <= count; i += LANES<T>) take(i, load_all<T>(from + i));
    if (i < count) take(i, load_where(from + i, first_lanes<T>(count - i)));
    return nothing;
}

template <class T, class S>
HAMLET_INLINE void write_first(const T* from, int64_t count, S* to) {
    int64_t i = 0;
    for (; i + LANES<T> <= count; i += LANES<T>) store_all<T>(to + i, load(from + i));
    if (i < count) store_where(to + i, load(from + i), first_lanes<T>(count - i));
}

}  // namespace hamlet::HAMLET_ISA
