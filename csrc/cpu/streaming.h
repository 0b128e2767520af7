// Stores that go past the caches, for images too large to be found there again: a line that is stored whole need not be
// read first, which is a third of what moves.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "../view.h"
#include "simd.h"

namespace hamlet::HAMLET_ISA {

// Bytes of a plane that is made in the nearer caches before it is streamed.
constexpr int64_t MOST_STREAMED = 256 << 10;

inline int64_t last_cache() {
#if defined(_SC_LEVEL3_CACHE_SIZE)
    static const int64_t size = std::max<int64_t>(sysconf(_SC_LEVEL3_CACHE_SIZE), 8 << 20);
    return size;
#else
    return 32 << 20;
#endif
}

// Whether an image and what it is made from outgrow the last cache, and a plane of it does not outgrow the nearer ones.
inline bool is_streamed(const View& image) {
#if defined(__SSE2__)
    const int64_t plane = image.size[2] * image.size[3] * element_size(image.dtype);
    return plane <= MOST_STREAMED && 2 * plane * image.size[0] * image.size[1] > last_cache();
#else
    return false;
#endif
}

// Where in `room`, aligned to a line and a line longer than is needed, to make what is streamed to `to`.
template <class S>
S* lined_up(S* room, const S* to) {
    return room + reinterpret_cast<uintptr_t>(to) % HAMLET_VECTOR_BYTES / sizeof(S);
}

// Copy `count` elements between places that are lined up, and ask for as many of `next`.
template <class S>
void stream(const S* from, S* to, int64_t count, const S* next) {
    constexpr int64_t STEP = HAMLET_VECTOR_BYTES / sizeof(S);
    const int64_t head =
        std::min<int64_t>(count, (STEP - reinterpret_cast<uintptr_t>(to) % HAMLET_VECTOR_BYTES / sizeof(S)) % STEP);
    std::memcpy(to, from, head * sizeof(S));
    int64_t i = head;
#if defined(__SSE2__)
    for (; i + STEP <= count; i += STEP) {
        __builtin_prefetch(next + i);
#if defined(__AVX512F__)
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), _mm512_loadu_si512(from + i));
#elif defined(__AVX2__)
        _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i), _mm256_loadu_si256((const __m256i*)(from + i)));
#else
        _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), _mm_loadu_si128((const __m128i*)(from + i)));
#endif
    }
    // Before another thread is told that the image is there.
    _mm_sfence();
#endif
    std::memcpy(to + i, from + i, (count - i) * sizeof(S));
}

}  // namespace hamlet::HAMLET_ISA
