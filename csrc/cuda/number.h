// Elements as they are stored, and the float32 numbers that the kernels compute with.
#pragma once

#include <cstring>

#include "builtins.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace hamlet::cuda {

struct Float16 {
    uint16_t bits;
};
struct BFloat16 {
    uint16_t bits;
};

#if defined(__CUDACC__)

HAMLET_DEVICE float number(float stored) { return stored; }
HAMLET_DEVICE float number(Float16 stored) { return __half2float(__ushort_as_half(stored.bits)); }
HAMLET_DEVICE float number(BFloat16 stored) { return __uint_as_float(uint32_t(stored.bits) << 16); }

template <class T>
HAMLET_DEVICE T stored(float number) {
    if constexpr (sizeof(T) == 4) return number;
    else if constexpr (std::is_same_v<T, Float16>) return {__half_as_ushort(__float2half_rn(number))};
    else return {__bfloat16_as_ushort(__float2bfloat16_rn(number))};
}

// Two neighbours in one register.
template <class T>
HAMLET_DEVICE uint32_t pair(float first, float second) {
    uint32_t bits;
    if constexpr (std::is_same_v<T, Float16>)
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
    else
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
    return bits;
}

#else

inline float number(float stored) { return stored; }

inline float number(Float16 stored) {
    _Float16 half;
    std::memcpy(&half, &stored.bits, 2);
    return float(half);
}

inline float number(BFloat16 stored) {
    const uint32_t wide = uint32_t(stored.bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

template <class T>
T stored(float number) {
    if constexpr (sizeof(T) == 4) return number;
    else if constexpr (std::is_same_v<T, Float16>) {
        const _Float16 half = _Float16(number);
        T result;
        std::memcpy(&result.bits, &half, 2);
        return result;
    } else {
        uint32_t bits;
        std::memcpy(&bits, &number, 4);
        // To nearest, ties to even; a NaN must not round to infinity.
        const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        return {uint16_t((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded)};
    }
}

template <class T>
uint32_t pair(float first, float second) {
    return stored<T>(first).bits | uint32_t(stored<T>(second).bits) << 16;
}

#endif

// Calls run(T()) with the type that a dtype is stored as; the caller has refused float64.
template <class Run>
void with_type(DType dtype, const Run& run) {
    if (dtype == DType::float32) run(float());
    else if (dtype == DType::float16) run(Float16());
    else run(BFloat16());
}

}  // namespace hamlet::cuda
