// Rows of storage (float32, float64, bfloat16, float16) to and from rows of the dtype of accumulation.
#pragma once

#include "../view.h"
#include "simd.h"

namespace hamlet::HAMLET_ISA {

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
    return uint16_t((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded);
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
    read_row(view, offset, &value, 1);
    return value;
}

template <class T>
inline void write_one(const View& view, int64_t offset, T value) {
    write_row(view, offset, &value, 1);
}

}  // namespace hamlet::HAMLET_ISA
