// Depthwise products on channels_last images, any kernel and stride: a vector holds channels of one pixel.
//
// Rows are taken as they lie in memory. Which taps reach a pixel that holds something is decided once for each row and
// each column, so nothing is masked but the last channels.
#pragma once

#include <span>

#include "convolution.h"

namespace hamlet::HAMLET_ISA {

// One tap of a kernel along one axis, and the place that it reads from.
struct Tap {
    int64_t index, source;
};

// Along one axis, for every target the taps whose source holds something. In a transposed convolution the targets are
// the places of the input, and the sources those of the output.
class AxisTaps {
   public:
    void make(int64_t targets, int64_t valid, int64_t kernel, int64_t dilation, int64_t stride, bool transposed) {
        taps_.clear();
        first_.assign(1, 0);
        step_ = transposed ? 1 : stride;
        const int64_t reached = ceiling(valid, stride), sources = transposed ? reached : valid;
        holding_ = transposed ? valid : reached;
        for (int64_t target = 0; target < targets; ++target) {
            for (int64_t tap = 0; tap < kernel && target < holding_; ++tap) {
                const int64_t move = (tap - kernel / 2) * dilation, place = transposed ? target - move : target * stride + move;
                if (transposed && place % stride != 0) continue;
                const int64_t source = transposed ? place / stride : place;
                if (place >= 0 && source < sources) taps_.push_back({tap, source});
            }
            first_.push_back(int64_t(taps_.size()));
        }
        alike_.assign(targets, 1);
        for (int64_t target = targets - 2; target >= 0; --target)
            if (follows(target)) alike_[target] = alike_[target + 1] + 1;
    }

    std::span<const Tap> of(int64_t target) const {
        return {taps_.data() + first_[target], size_t(first_[target + 1] - first_[target])};
    }
    // How many targets from this one on have the same taps, each with its sources a step further.
    int64_t alike(int64_t target) const { return alike_[target]; }
    int64_t step() const { return step_; }
    // Targets from here on hold nothing.
    int64_t holding() const { return holding_; }

   private:
    std::vector<Tap> taps_;
    std::vector<int64_t> first_, alike_;
    int64_t step_ = 1, holding_ = 0;

    bool follows(int64_t target) const {
        const std::span<const Tap> own = of(target), next = of(target + 1);
        if (own.size() != next.size() || (target < holding_) != (target + 1 < holding_)) return false;
        for (size_t i = 0; i < own.size(); ++i)
            if (own[i].index != next[i].index || own[i].source + step_ != next[i].source) return false;
        return true;
    }
};

struct TapsKey {
    Size targets, valid, kernel;
    int64_t dilation, stride;
    bool transposed;
    bool operator==(const TapsKey&) const = default;
};

struct Taps {
    TapsKey key{};
    AxisTaps rows, columns;

    bool is_for(const TapsKey& other) const { return key == other; }
    void make(const TapsKey& own) {
        key = own;
        rows.make(own.targets.height, own.valid.height, own.kernel.height, own.dilation, own.stride, own.transposed);
        columns.make(own.targets.width, own.valid.width, own.kernel.width, own.dilation, own.stride, own.transposed);
    }
};

// Vectors of channels that are worked at together: one alone would wait for its own multiply-adds.
constexpr int MOST_VECTORS = 2;

// Channels of one sample with one dilation: whole vectors of them, or a part of one.
struct Chunk {
    int64_t sample, first, channels;
};

// The filters of a chunk's channels, [tap][channel], the channels padded to whole vectors; start: the bias.
template <class T>
struct ChunkFilters {
    static constexpr int64_t PITCH = MOST_VECTORS * LANES<T>;
    const T *taps, *start;
};

template <class T>
int64_t filters_size(const Convolution& c) {
    return (c.weight.size[3] * c.weight.size[4] + 1) * ChunkFilters<T>::PITCH;
}

template <class T>
ChunkFilters<T> read_chunk(const Convolution& c, const Chunk& chunk, bool flipped, T* to) {
    constexpr int64_t PITCH = ChunkFilters<T>::PITCH;
    const int64_t taps = c.weight.size[3] * c.weight.size[4];
    std::fill_n(to, filters_size<T>(c), T(0));
    with_storage<T>(c.weight.dtype, [&](auto* storage) {
        using S = std::remove_pointer_t<decltype(storage)>;
        const S* const from = reinterpret_cast<const S*>(c.weight.data) + chunk.sample * c.weight.stride[0];
        for (int64_t channel = 0; channel < chunk.channels; channel += LANES<T>)
            for (int64_t first = 0; first < taps; first += LANES<T>) {
                Vector<T> square[LANES<T>] = {};
                for (int64_t i = 0; i < std::min<int64_t>(LANES<T>, chunk.channels - channel); ++i)
                    square[i] = load_where(from + (chunk.first + channel + i) * taps + first, first_lanes<T>(taps - first));
                transpose_square<T>(square);
                for (int64_t tap = first; tap < std::min(first + LANES<T>, taps); ++tap)
                    store(to + (flipped ? taps - 1 - tap : tap) * PITCH + channel, square[tap - first]);
            }
    });
    T *const middle = to + taps / 2 * PITCH, *const start = to + taps * PITCH;
    for (int64_t channel = 0; channel < chunk.channels; ++channel) {
        if (c.residual) middle[channel] += T(1);
        if (c.bias) start[channel] = bias_of<T>(c, chunk.sample, chunk.first + channel);
    }
    return {to, start};
}

// A chunk's channels of an image, and the elements between its rows and its pixels.
template <class S>
struct Pixels {
    S* data;
    int64_t row, pixel;

    S* at(int64_t y, int64_t x) const { return data + y * row + x * pixel; }
};

template <class S>
Pixels<S> pixels_of(const View& image, const Chunk& chunk) {
    S* const data = reinterpret_cast<S*>(image.data) + chunk.sample * image.stride[0] + chunk.first * image.stride[1];
    return {data, image.stride[2], image.stride[3]};
}

template <class T, bool WHOLE, class S>
HAMLET_INLINE Vector<T> load_channels(const S* from, Mask<T> mask) {
    return WHOLE ? load_all<T>(from) : load_where(from, mask);
}

// PIXELS targets beside each other that have the same taps.
template <class T, class S, int PIXELS, int VECTORS, bool WHOLE>
HAMLET_INLINE void correlate_pixels(std::span<const Tap> rows, std::span<const Tap> columns, int64_t kernel_width,
                                    const ChunkFilters<T>& filters, const Pixels<const S>& from, int64_t step, S* to,
                                    int64_t to_pixel, Mask<T> mask) {
    Vector<T> sums[PIXELS][VECTORS];
#pragma GCC unroll 4
    for (int p = 0; p < PIXELS; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) sums[p][v] = load(filters.start + v * LANES<T>);
    for (const Tap& row : rows)
        for (const Tap& column : columns) {
            const T* const filter = filters.taps + (row.index * kernel_width + column.index) * filters.PITCH;
            Vector<T> factors[VECTORS];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) factors[v] = in_register(load(filter + v * LANES<T>));
            const S* pixel = from.at(row.source, column.source);
#pragma GCC unroll 4
            for (int p = 0; p < PIXELS; ++p, pixel += step) {
                // One pointer a pixel: the compiler would keep an offset for each vector, more than there are registers.
                asm("" : "+r"(pixel));
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; ++v)
                    sums[p][v] += factors[v] * load_channels<T, WHOLE>(pixel + v * LANES<T>, mask);
            }
        }
#pragma GCC unroll 4
    for (int p = 0; p < PIXELS; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
            S* const target = to + p * to_pixel + v * LANES<T>;
            if constexpr (WHOLE) store_all<T>(target, sums[p][v]);
            else store_where(target, sums[p][v], mask);
        }
}

// Zeros from pixel `x` of a row on.
template <class T, class S, int VECTORS>
void clear_pixels(const Pixels<S>& to, int64_t y, int64_t x, int64_t width, Mask<T> mask) {
    for (; x < width; ++x)
        for (int v = 0; v < VECTORS; ++v) store_where(to.at(y, x) + v * LANES<T>, Vector<T>{}, mask);
}

// One row of targets, zeros where they hold nothing.
template <class T, class S, int VECTORS, bool WHOLE>
void correlate_row(const Taps& taps, const ChunkFilters<T>& filters, const Pixels<const S>& from, const Pixels<S>& to,
                   int64_t y, Mask<T> mask) {
    constexpr int64_t TOGETHER = VECTOR_REGISTERS / 8;
    const AxisTaps& columns = taps.columns;
    const std::span<const Tap> rows = taps.rows.of(y);
    const int64_t kernel_width = taps.key.kernel.width, step = columns.step() * from.pixel;
    const int64_t holding = y < taps.rows.holding() ? columns.holding() : 0;
    for (int64_t x = 0; x < holding;)
        if (columns.alike(x) >= TOGETHER) {
            correlate_pixels<T, S, TOGETHER, VECTORS, WHOLE>(rows, columns.of(x), kernel_width, filters, from, step,
                                                             to.at(y, x), to.pixel, mask);
            x += TOGETHER;
        } else {
            correlate_pixels<T, S, 1, VECTORS, WHOLE>(rows, columns.of(x), kernel_width, filters, from, step, to.at(y, x),
                                                      to.pixel, mask);
            ++x;
        }
    clear_pixels<T, S, VECTORS>(to, y, holding, taps.key.targets.width, mask);
}

// totals[tap] += the pixels moved by a tap times the gradient, along `count` targets, for TAPS taps beside each other.
// `ahead`, `grad_ahead`: elements to the next row, pages further than a processor looks ahead.
template <class T, class S, int TAPS, int VECTORS, bool WHOLE>
HAMLET_INLINE void weigh_pixels(const S* from, int64_t step, int64_t to_next_tap, int64_t ahead, const S* grad,
                                int64_t grad_step, int64_t grad_ahead, int64_t count, T* totals, Mask<T> mask) {
    Vector<T> sums[TAPS][VECTORS] = {};
    for (int64_t i = 0; i < count; ++i, from += step, grad += grad_step) {
        ask_for<CACHE_AHEAD<S>>(from + (TAPS - 1) * to_next_tap + ahead, VECTORS * LANES<T>);
        ask_for<CACHE_AHEAD<S>>(grad + grad_ahead, VECTORS * LANES<T>);
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
            const Vector<T> factor = in_register(load_channels<T, WHOLE>(grad + v * LANES<T>, mask));
#pragma GCC unroll 8
            for (int tap = 0; tap < TAPS; ++tap)
                sums[tap][v] += factor * load_channels<T, WHOLE>(from + tap * to_next_tap + v * LANES<T>, mask);
        }
    }
#pragma GCC unroll 8
    for (int tap = 0; tap < TAPS; ++tap)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
            T* const total = totals + tap * ChunkFilters<T>::PITCH + v * LANES<T>;
            store(total, load(total) + sums[tap][v]);
        }
}

// The targets of a row whose source by one tap holds something.
struct Span {
    int64_t begin, end;
};

inline Span span_of(int64_t move, int64_t stride, int64_t valid) {
    const int64_t begin = std::min(ceiling(std::max<int64_t>(-move, 0), stride), ceiling(valid, stride));
    return {begin, std::clamp(ceiling(std::max<int64_t>(valid - move, 0), stride), begin, ceiling(valid, stride))};
}

// totals[tap][channel] += the gradient of the filters. KERNEL: the kernel's width, or 0 for any, tap by tap.
template <class T, class S, int KERNEL, int VECTORS, bool WHOLE>
void weigh_rows(const Taps& taps, const Pixels<const S>& from, const Pixels<const S>& grad, T* totals, Mask<T> mask) {
    const int64_t width = taps.key.valid.width, taps_wide = taps.key.kernel.width, half = taps_wide / 2;
    const int64_t dilation = taps.key.dilation, stride = taps.key.stride;
    // The targets that all taps serve: the first tap reaches furthest back, the last one furthest on.
    const Span common = {span_of(-half * dilation, stride, width).begin, span_of(half * dilation, stride, width).end};
    const bool together = KERNEL > 0 && common.begin < common.end;
    for (int64_t y = 0; y < taps.rows.holding(); ++y)
        for (const Tap& row : taps.rows.of(y)) {
            T* const row_totals = totals + row.index * taps_wide * ChunkFilters<T>::PITCH;
            const auto weigh = [&]<int TAPS>(std::integral_constant<int, TAPS>, int64_t tap, Span span) {
                if (span.begin >= span.end) return;
                const S* const source = from.at(row.source, span.begin * stride + (tap - half) * dilation);
                weigh_pixels<T, S, TAPS, VECTORS, WHOLE>(source, stride * from.pixel, dilation * from.pixel, stride * from.row,
                                                         grad.at(y, span.begin), grad.pixel, grad.row, span.end - span.begin,
                                                         row_totals + tap * ChunkFilters<T>::PITCH, mask);
            };
            constexpr std::integral_constant<int, 1> one;
            if constexpr (KERNEL > 0)
                if (together) weigh(std::integral_constant<int, KERNEL>{}, 0, common);
            for (int64_t tap = 0; tap < taps_wide; ++tap) {
                const Span own = span_of((tap - half) * dilation, stride, width);
                if (!together) weigh(one, tap, own);
                else {
                    weigh(one, tap, {own.begin, common.begin});
                    weigh(one, tap, {common.end, own.end});
                }
            }
        }
}

template <class T, class S, int VECTORS, bool WHOLE>
void sum_rows(const Taps& taps, const Pixels<const S>& grad, T* totals, Mask<T> mask) {
    for (int64_t y = 0; y < taps.rows.holding(); ++y) {
        Vector<T> sums[VECTORS] = {};
        for (int64_t x = 0; x < taps.columns.holding(); ++x)
            for (int v = 0; v < VECTORS; ++v) sums[v] += load_channels<T, WHOLE>(grad.at(y, x) + v * LANES<T>, mask);
        for (int v = 0; v < VECTORS; ++v) store(totals + v * LANES<T>, load(totals + v * LANES<T>) + sums[v]);
    }
}

// Call `run.template operator()<VECTORS, WHOLE>(mask)` with what a chunk of so many channels needs.
template <class T, class Run>
void with_vectors(int64_t channels, const Run& run) {
    const Mask<T> all = first_lanes<T>(LANES<T>);
    if (channels < LANES<T>) run.template operator()<1, false>(first_lanes<T>(channels));
    else if (channels == LANES<T>) run.template operator()<1, true>(all);
    else run.template operator()<MOST_VECTORS, true>(all);
}

// The channels of a sample in chunks as large as there are templates for.
template <class T>
std::vector<Chunk> chunks_of(const Convolution& c, int64_t sample) {
    std::vector<Chunk> chunks;
    const int64_t blocks = c.dilation.size[1], in_block = c.groups / blocks;
    for (int64_t block = 0; block < blocks; ++block)
        for (int64_t first = 0; first < in_block;) {
            const int64_t vectors = (in_block - first) / LANES<T>;
            const int64_t most = vectors >= MOST_VECTORS ? MOST_VECTORS : 1;
            chunks.push_back({sample, block * in_block + first, std::min(in_block - first, most * LANES<T>)});
            first += chunks.back().channels;
        }
    return chunks;
}

inline TapsKey taps_key(const Convolution& c, const Chunk& chunk, bool transposed) {
    const Size valid = valid_size(c, chunk.sample), input = size_of(c.input), kernel{c.weight.size[3], c.weight.size[4]};
    const Size output{ceiling(input.height, c.stride), ceiling(input.width, c.stride)};
    const int64_t dilation = dilation_of(c, chunk.sample, chunk.first, valid);
    return {transposed ? input : output, valid, kernel, dilation, c.stride, transposed};
}

}  // namespace hamlet::HAMLET_ISA
