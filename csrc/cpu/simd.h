// One vector register of the instruction set that the file is compiled for, with the few operations that operators and
// literals of the vector extension do not give. Everything lives in a namespace of the instruction set's own, so that
// no two sets' code can be merged by the linker.
#pragma once

#include <cmath>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#ifndef HAMLET_ISA
#error "HAMLET_ISA names the instruction set; csrc/CMakeLists.txt sets it"
#endif

#if defined(__AVX512F__)
#define HAMLET_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define HAMLET_VECTOR_BYTES 32
#else
#define HAMLET_VECTOR_BYTES 16
#endif

#define HAMLET_INLINE inline __attribute__((always_inline))
#define HAMLET_INLINED __attribute__((always_inline))  // of a lambda
#define HAMLET_APART __attribute__((noinline))

namespace hamlet::HAMLET_ISA {

constexpr int VECTOR_REGISTERS = HAMLET_VECTOR_BYTES == 64 ? 32 : 16;

template <class T>
constexpr int LANES = HAMLET_VECTOR_BYTES / int(sizeof(T));

template <class T>
struct VectorOf {
    typedef T type __attribute__((vector_size(HAMLET_VECTOR_BYTES)));
};
template <class T>
using Vector = typename VectorOf<T>::type;
template <class T>
using Integer = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

template <class T>
HAMLET_INLINE Vector<T> load(const T* from) {
    Vector<T> vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}

template <class T>
HAMLET_INLINE void store(T* to, Vector<T> vector) {
    std::memcpy(to, &vector, sizeof vector);
}

// As __builtin_prefetch counts them.
constexpr int NEAREST_CACHE = 3, SECOND_CACHE = 2;

// Kernels ask for elements of four bytes or more faster than memory answers. What waits for it on the way to the nearest
// cache is in the way of the loads at hand; of narrower ones less is under way, and the nearest cache is better.
template <class S>
constexpr int CACHE_AHEAD = sizeof(S) >= 4 ? SECOND_CACHE : NEAREST_CACHE;

// So many elements will be read soon, or WRITTEN.
template <int CACHE, int WRITTEN = 0, class S>
HAMLET_INLINE void ask_for(const S* from, int64_t count) {
    constexpr int64_t LINE = 64 / sizeof(S);
    for (int64_t i = 0; i < count; i += LINE) __builtin_prefetch(from + i, WRITTEN, CACHE);
}

// Which lanes take part: a mask register, or where there is none a vector of ones and zeros.
#if defined(__AVX512F__)
template <class T>
using Mask = std::conditional_t<sizeof(T) == 4, __mmask16, __mmask8>;

template <class T>
HAMLET_INLINE Mask<T> mask_of(uint32_t bits) {
    return Mask<T>(bits);
}
template <class T>
HAMLET_INLINE Mask<T> first_lanes(int64_t count) {
    const uint32_t all = (1u << LANES<T>) - 1;
    return Mask<T>(count >= LANES<T> ? all : all & ((1u << count) - 1));
}
template <class T>
HAMLET_INLINE bool every(Mask<T> mask) {
    return mask == first_lanes<T>(LANES<T>);
}
#else
template <class T>
using Mask = Vector<Integer<T>>;

template <class T>
HAMLET_INLINE Mask<T> mask_of(uint32_t bits) {
    Mask<T> mask;
    for (int lane = 0; lane < LANES<T>; ++lane) mask[lane] = -Integer<T>((bits >> lane) & 1);
    return mask;
}
template <class T>
HAMLET_INLINE Mask<T> first_lanes(int64_t count) {
    Mask<T> index;
    for (int lane = 0; lane < LANES<T>; ++lane) index[lane] = lane;
    return index < Integer<T>(count < LANES<T> ? count : LANES<T>);
}
template <class T>
HAMLET_INLINE bool every(Mask<T> mask) {
#if defined(__AVX2__)
    return _mm256_movemask_epi8((__m256i)mask) == -1;
#else
    Integer<T> all = -1;
    for (int lane = 0; lane < LANES<T>; ++lane) all &= mask[lane];
    return all != 0;
#endif
}
#endif

template <class T>
HAMLET_INLINE bool any(Mask<T> mask) {
    return !every<T>(Mask<T>(~mask));
}

// The lanes of the mask, zeros in the others; the elements of those are not touched.
template <std::floating_point T>
HAMLET_INLINE Vector<T> load_where(const T* from, Mask<T> mask) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return _mm512_maskz_loadu_ps(mask, from);
    else return _mm512_maskz_loadu_pd(mask, from);
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4) return _mm256_maskload_ps(from, (__m256i)mask);
    else return _mm256_maskload_pd(from, (__m256i)mask);
#else
    if (every<T>(mask)) return load(from);
    Vector<T> vector = {};
    for (int lane = 0; lane < LANES<T>; ++lane)
        if (mask[lane]) vector[lane] = from[lane];
    return vector;
#endif
}

template <std::floating_point T>
HAMLET_INLINE void store_where(T* to, Vector<T> vector, Mask<T> mask) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(to, mask, vector);
    else _mm512_mask_storeu_pd(to, mask, vector);
#elif defined(__AVX2__)
    // Of a masked store AMD's processors before Zen 4 make dozens of instructions.
    if (every<T>(mask)) return store(to, vector);
    if constexpr (sizeof(T) == 4) _mm256_maskstore_ps(to, (__m256i)mask, vector);
    else _mm256_maskstore_pd(to, (__m256i)mask, vector);
#else
    if (every<T>(mask)) return store(to, vector);
    for (int lane = 0; lane < LANES<T>; ++lane)
        if (mask[lane]) to[lane] = vector[lane];
#endif
}

template <class T>
HAMLET_INLINE Vector<T> zero_unless(Mask<T> mask, Vector<T> vector) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return _mm512_maskz_mov_ps(mask, vector);
    else return _mm512_maskz_mov_pd(mask, vector);
#else
    return (Vector<T>)((Mask<T>)vector & mask);
#endif
}

// The first `count` elements, zeros in the other lanes; nothing beyond them is touched.
template <class T>
HAMLET_INLINE Vector<T> load_first(const T* from, int64_t count) {
    return load_where<T>(from, first_lanes<T>(count));
}

template <class T>
HAMLET_INLINE void store_first(T* to, Vector<T> vector, int64_t count) {
    store_where<T>(to, vector, first_lanes<T>(count));
}

template <class T>
HAMLET_INLINE Vector<T> broadcast(T value) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return _mm512_set1_ps(value);
    else return _mm512_set1_pd(value);
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4) return _mm256_set1_ps(value);
    else return _mm256_set1_pd(value);
#else
    Vector<T> vector;
    for (int lane = 0; lane < LANES<T>; ++lane) vector[lane] = value;
    return vector;
#endif
}

// The compiler would rather load a vector again for each of its uses, and loads are what is scarce.
template <class V>
HAMLET_INLINE V in_register(V vector) {
#if defined(__AVX512F__)
    asm("" : "+v"(vector));
#elif defined(__x86_64__)
    asm("" : "+x"(vector));
#endif
    return vector;
}

// min and max return `b` where either is NaN.
template <class T>
HAMLET_INLINE Vector<T> min(Vector<T> a, Vector<T> b) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return _mm512_min_ps(a, b);
    else return _mm512_min_pd(a, b);
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4) return _mm256_min_ps(a, b);
    else return _mm256_min_pd(a, b);
#else
    return a < b ? a : b;
#endif
}

template <class T>
HAMLET_INLINE Vector<T> max(Vector<T> a, Vector<T> b) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return _mm512_max_ps(a, b);
    else return _mm512_max_pd(a, b);
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4) return _mm256_max_ps(a, b);
    else return _mm256_max_pd(a, b);
#else
    return a > b ? a : b;
#endif
}

template <class T>
HAMLET_INLINE Vector<T> absolute(Vector<T> a) {
    return max<T>(a, -a);
}

// `yes` where `a` >= 0, `no` elsewhere and where `a` is NaN.
template <class T>
HAMLET_INLINE Vector<T> where_not_negative(Vector<T> a, Vector<T> yes, Vector<T> no) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
        return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, _mm512_setzero_ps(), _CMP_GE_OQ), no, yes);
    else return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(a, _mm512_setzero_pd(), _CMP_GE_OQ), no, yes);
#else
    return a >= Vector<T>{} ? yes : no;
#endif
}

// One bit a lane, set where `a` >= 0.
template <class T>
HAMLET_INLINE unsigned not_negative(Vector<T> a) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return _mm512_cmp_ps_mask(a, _mm512_setzero_ps(), _CMP_GE_OQ);
    else return _mm512_cmp_pd_mask(a, _mm512_setzero_pd(), _CMP_GE_OQ);
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4) return _mm256_movemask_ps(_mm256_cmp_ps(a, _mm256_setzero_ps(), _CMP_GE_OQ));
    else return _mm256_movemask_pd(_mm256_cmp_pd(a, _mm256_setzero_pd(), _CMP_GE_OQ));
#else
    unsigned bits = 0;
    for (int lane = 0; lane < LANES<T>; ++lane) bits |= unsigned(a[lane] >= 0) << lane;
    return bits;
#endif
}

// Zero where `a` is not finite.
template <class T>
HAMLET_INLINE Vector<T> finite_or_zero(Vector<T> a) {
    return where_not_negative<T>(std::numeric_limits<T>::max() - absolute<T>(a), a, Vector<T>{});
}

// 2 to the power of `x`, which is at most 0 but for rounding; 0 where that is no normal number, NaN for NaN. Not by
// AVX-512's own scaling, which takes a hundred times as long where the result is not normal: at every key out of reach.
template <class T>
HAMLET_INLINE Vector<T> exp2_of_negative(Vector<T> x) {
    constexpr bool single = sizeof(T) == 4;
#if defined(__AVX512F__)
    __m512i exponent;
    Vector<T> whole;
    if constexpr (single) whole = _mm512_cvtepi32_ps(exponent = _mm512_cvtps_epi32(x));
    else whole = _mm512_cvtepi64_pd(exponent = _mm512_cvtpd_epi64(x));
#else
    // Below the smallest normal number the exponent field would wrap.
    const Vector<T> small = x - broadcast<T>(single ? -126 : -1022);
    x = max<T>(broadcast<T>(single ? -126 : -1022), x);
    const Vector<T> magic = broadcast<T>(single ? T(12582912.0) : T(6755399441055744.0));
    const Vector<T> shifted = x + magic;
    const Vector<T> whole = shifted - magic;
#endif
    const Vector<T> f = x - whole;
    Vector<T> power;
    if constexpr (single) {
        constexpr T c[] = {1.5353362e-4f, 1.3398874e-3f, 9.6184373e-3f, 5.5503324e-2f, 2.4022648e-1f, 6.9314718e-1f, 1};
        power = broadcast<T>(c[0]);
        for (int i = 1; i < 7; ++i) power = power * f + broadcast<T>(c[i]);
    } else {
        // Taylor's coefficients ln(2)^n / n!: 0.35^14 / 14! is below the rounding.
        const Vector<T> y = f * broadcast<T>(0.693147180559945309417);
        constexpr T c[] = {1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880,
                           1.0 / 40320,      1.0 / 5040,      1.0 / 720,      1.0 / 120,     1.0 / 24,
                           1.0 / 6,          1.0 / 2,         1.0,            1.0};
        power = broadcast<T>(c[0]);
        for (int i = 1; i < 14; ++i) power = power * y + broadcast<T>(c[i]);
    }
#if defined(__AVX512F__)
    // The comparison is written so that NaN stays.
    if constexpr (single) {
        const __mmask16 normal = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-126), _CMP_NLT_UQ);
        return (Vector<T>)_mm512_maskz_add_epi32(normal, (__m512i)power, _mm512_slli_epi32(exponent, 23));
    } else {
        const __mmask8 normal = _mm512_cmp_pd_mask(x, _mm512_set1_pd(-1022), _CMP_NLT_UQ);
        return (Vector<T>)_mm512_maskz_add_epi64(normal, (__m512i)power, _mm512_slli_epi64(exponent, 52));
    }
#else
    // Unsigned: what is far above 0, and will be masked, may wrap.
    using Bits = Vector<std::make_unsigned_t<Integer<T>>>;
    const Bits exponent = ((Bits)shifted - (Bits)magic) << (single ? 23 : 52);
    const Vector<T> scaled = (Vector<T>)((Bits)power + exponent);
    // The comparison is written so that NaN stays.
    return small < Vector<T>{} ? Vector<T>{} : scaled;
#endif
}

// Natural logarithm of normal positive numbers.
template <class T>
HAMLET_INLINE Vector<T> log_of_positive(Vector<T> x) {
    if constexpr (sizeof(T) == 8) {
        for (int lane = 0; lane < LANES<T>; ++lane) x[lane] = std::log(x[lane]);
        return x;
    } else {
        using Bits = Vector<int32_t>;
        // x = mantissa * 2^exponent with the mantissa in [sqrt(1/2), sqrt(2)).
        const Bits exponent = ((Bits)x - 0x3f3504f3) >> 23;
        const Vector<T> y = (Vector<T>)((Bits)x - (exponent << 23)) - 1;
        const Vector<T> whole = __builtin_convertvector(exponent, Vector<T>);
        constexpr T c[] = {7.0376836292e-2f, -1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f,
                           -1.6668057665e-1f, 2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f};
        Vector<T> series = broadcast<T>(c[0]);
        for (int i = 1; i < 9; ++i) series = series * y + c[i];
        const Vector<T> square = y * y;
        series = series * y * square + whole * -2.12194440e-4f - square * 0.5f;
        return y + series + whole * 0.693359375f;
    }
}

}  // namespace hamlet::HAMLET_ISA
