// Depthwise products with a kernel of 3 or 5, stride 1, on channels_last images: along a row, each pixel that is loaded
// serves the K outputs that it reaches, and the filters stay in registers.
#pragma once

#include "channels_last.h"

namespace hamlet::HAMLET_ISA {

// A filter and the K targets that the pixel at hand reaches, the first of them complete once it has been added.
template <class T, int K, int VECTORS>
struct RollingPixels {
    Vector<T> taps[K * K][VECTORS], start[VECTORS], sums[K][VECTORS];

    HAMLET_INLINE explicit RollingPixels(const ChunkFilters<T>& filters) {
#pragma GCC unroll 32
        for (int tap = 0; tap < K * K; ++tap)
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) taps[tap][v] = load(filters.taps + tap * filters.PITCH + v * LANES<T>);
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) start[v] = load(filters.start + v * LANES<T>);
    }

    HAMLET_INLINE void begin() {
#pragma GCC unroll 8
        for (int i = 0; i < K; ++i)
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) sums[i][v] = start[v];
    }

    template <bool WHOLE, class S>
    HAMLET_INLINE void add(const S* const (&rows)[K], Mask<T> mask) {
#pragma GCC unroll 8
        for (int y = 0; y < K; ++y)
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) {
                const Vector<T> pixel = in_register(load_channels<T, WHOLE>(rows[y] + v * LANES<T>, mask));
#pragma GCC unroll 8
                for (int x = 0; x < K; ++x) sums[K - 1 - x][v] += taps[y * K + x][v] * pixel;
            }
    }

    template <bool WHOLE, class S>
    HAMLET_INLINE void write(S* to, Mask<T> mask) const {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v)
            if constexpr (WHOLE) store_all<T>(to + v * LANES<T>, sums[0][v]);
            else store_where(to + v * LANES<T>, sums[0][v], mask);
    }

    HAMLET_INLINE void roll() {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
#pragma GCC unroll 8
            for (int i = 0; i + 1 < K; ++i) sums[i][v] = sums[i + 1][v];
            sums[K - 1][v] = start[v];
        }
    }
};

// What is asked for with every pixel: so many elements, of what is read and of what is written later.
template <class S>
struct Ahead {
    const S* from;
    S* to;
    int64_t step;

    // Into the nearest cache: with the second one it takes up to 1.3 times as long.
    HAMLET_INLINE void ask(int64_t count) {
        ask_for<NEAREST_CACHE>(from, count);
        ask_for<NEAREST_CACHE, 1>(to, count);
        from += step;
        to += step;
    }
};

// One row of targets, zeros where they hold nothing: those a dilation apart together.
template <class T, class S, int K, int VECTORS, bool WHOLE>
void roll_row(const Taps& taps, const ChunkFilters<T>& filters, const Pixels<const S>& from, const Pixels<S>& to,
              int64_t y, Ahead<S> ahead, Mask<T> mask) {
    constexpr int R = K / 2;
    alignas(64) static constexpr S zeros[VECTORS * LANES<T>] = {};
    const Size valid = taps.key.valid;
    const int64_t dilation = taps.key.dilation, holding = y < valid.height ? valid.width : 0;
    const S* begins[K];
    int64_t steps[K];
    for (int k = 0; k < K; ++k) {
        const int64_t row = y + (k - R) * dilation;
        const bool holds = row >= 0 && row < valid.height;
        begins[k] = holds ? from.at(row, 0) : zeros;
        steps[k] = holds ? from.pixel : 0;
    }
    RollingPixels<T, K, VECTORS> rolling(filters);
    for (int64_t first = 0; first < std::min(dilation, holding); ++first) {
        const int64_t count = ceiling(holding - first, dilation);
        S* target = to.at(y, first);
        const S* rows[K];
#pragma GCC unroll 8
        for (int k = 0; k < K; ++k) rows[k] = begins[k] + first * steps[k];
        rolling.begin();
        for (int64_t i = 0; i < count + R; ++i) {
            if (i < count) {
                ahead.ask(VECTORS * LANES<T>);
                rolling.template add<WHOLE>(rows, mask);
#pragma GCC unroll 8
                for (int k = 0; k < K; ++k) rows[k] += dilation * steps[k];
            }
            if (i >= R) {
                rolling.template write<WHOLE>(target, mask);
                target += dilation * to.pixel;
            }
            rolling.roll();
        }
    }
    clear_pixels<T, S, VECTORS>(to, y, holding, taps.key.targets.width, mask);
}

// The rows that a chunk's row of targets asks for: the first that no tap has reached, or at the bottom the last one, and the
// next one of targets. Where all channels are at hand, which is where there are several chunks, each asks for its share of
// them as it lies in memory: a processor follows that further than a chunk's own channels, which are pixels apart.
template <class S>
Ahead<S> ahead_of(std::span<const Chunk> chunks, const Chunk& chunk, const Pixels<const S>& from, const Pixels<S>& to,
                  int64_t y, int64_t reach, Size valid) {
    // From the chunk's own channels of the first pixel to its share, which begins after those of the chunks before it.
    const int64_t share = (valid.width - 1) * (chunk.first - chunks.front().first);
    return {from.at(std::min(y + reach + 1, valid.height - 1), 0) + share,
            to.at(std::min(y + 1, valid.height - 1), 0) + share, chunks.size() > 1 ? chunk.channels : from.pixel};
}

// Rows [first, last) of the targets of some chunks of a sample: row by row, for the channels of a pixel lie together. In a
// transposed convolution the bias plays no part: it is absent from `c`.
template <class T, class S>
void correlate_rows(const Convolution& c, std::span<const Chunk> chunks, const View& from, const View& to, bool transposed,
                    int64_t first, int64_t last) {
    static thread_local Buffer<T> buffer;
    static thread_local std::vector<Taps> taps;
    const int64_t size = filters_size<T>(c), kernel = is_small(c) ? c.weight.size[3] : 0;
    const bool rolling = kernel > 1;
    T* const room = buffer.room(int64_t(chunks.size()) * size);
    if (taps.size() < chunks.size()) taps.resize(chunks.size());
    std::vector<ChunkFilters<T>> filters;
    int64_t reach = 0;
    for (size_t i = 0; i < chunks.size(); ++i) {
        const TapsKey key = taps_key(c, chunks[i], transposed);
        if (rolling) taps[i].key = key;
        else if (!taps[i].is_for(key)) taps[i].make(key);
        reach = std::max(reach, key.dilation * (kernel / 2));
        filters.push_back(read_chunk<T>(c, chunks[i], rolling && transposed, room + int64_t(i) * size));
    }
    for (int64_t y = first; y < last; ++y)
        for (size_t i = 0; i < chunks.size(); ++i)
            with_vectors<T>(chunks[i].channels, [&]<int VECTORS, bool WHOLE>(Mask<T> mask) {
                const Pixels<const S> source = pixels_of<const S>(from, chunks[i]);
                const Pixels<S> target = pixels_of<S>(to, chunks[i]);
                if (!rolling)
                    return correlate_row<T, S, VECTORS, WHOLE>(taps[i], filters[i], source, target, y, mask);
                const Ahead<S> ahead = ahead_of(chunks, chunks[i], source, target, y, reach, taps[i].key.valid);
                if (kernel == 3) roll_row<T, S, 3, VECTORS, WHOLE>(taps[i], filters[i], source, target, y, ahead, mask);
                else roll_row<T, S, 5, VECTORS, WHOLE>(taps[i], filters[i], source, target, y, ahead, mask);
            });
}

}  // namespace hamlet::HAMLET_ISA
