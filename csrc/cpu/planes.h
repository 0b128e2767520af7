// Image planes as the convolution's kernels read them: rows of vectors, zeros left and right.
//
// A contiguous image gives one plane a channel, its pixels in the lanes. A channels_last image gives one plane for as many
// channels as a vector has lanes: a pixel is then a whole vector, and its neighbour lies LANES elements away. Seen so,
// both are the same two-dimensional array, and one kernel serves both.
#pragma once

#include <algorithm>

#include "convert.h"
#include "kernels.h"
#include "parallel.h"
#include "scratch.h"

namespace hamlet::HAMLET_ISA {

struct Size {
    int64_t height, width;
};

// Pixels of a sample that hold something: (height, width) of the image, or of its extent.
inline Size valid_size(const Convolution& c, int64_t sample) {
    if (!c.extent) return {c.input.size[2], c.input.size[3]};
    const int64_t* values = reinterpret_cast<const int64_t*>(c.extent.data) + 2 * sample;
    return {values[0], values[1]};
}

// A dilation that takes every tap but the middle one out of the image is as good as any greater one.
inline int64_t dilation_of(const Convolution& c, int64_t sample, int64_t group, Size valid) {
    const int64_t blocks = c.dilation.size[1], block = group / (c.groups / blocks);
    const int64_t* values = reinterpret_cast<const int64_t*>(c.dilation.data);
    return std::min(values[sample * c.dilation.stride[0] + block * c.dilation.stride[1]],
                    std::max(valid.height, valid.width));
}

// Channels [first, first + lanes) of one sample: one channel, or those that share the lanes of a vector.
struct Channels {
    int64_t sample, first, lanes;
    bool in_lanes;

    int64_t offset(const View& image, int64_t y, int64_t x) const {
        return sample * image.stride[0] + first * image.stride[1] + y * image.stride[2] + x * image.stride[3];
    }
};

template <class T>
struct Plane {
    T* data = nullptr;   // of row 0, pixel 0
    int64_t pitch = 0;   // between rows
    int64_t vectors = 0; // of a row
    int64_t unit = 1;    // between pixels

    T* row(int64_t y) const { return data + y * pitch; }

    // Room for `height` rows of `width` pixels with `padding` pixels of zeros on both sides.
    void make(int64_t height, int64_t width, int64_t padding, bool in_lanes, Buffer<T>& buffer) {
        unit = in_lanes ? LANES<T> : 1;
        vectors = ceiling(width * unit, LANES<T>);
        const int64_t side = ceiling(padding * unit, LANES<T>) * LANES<T>;
        pitch = vectors * LANES<T> + 2 * side;
        data = buffer.room(height * pitch) + side;
        for (int64_t y = 0; y < height; ++y) {
            std::fill_n(row(y) - side, side, T(0));
            std::fill_n(row(y) + vectors * LANES<T>, side, T(0));
        }
    }

    // Read pixels (y, x) of the image into pixels (y * spread, x * spread), zeros between.
    void read(const View& image, const Channels& channels, Size size, int64_t spread, int64_t height) const {
        for (int64_t y = 0; y < height; ++y) {
            T* to = row(y);
            if (y % spread == 0 && y / spread < size.height) {
                read_pixels(image, channels, y / spread, size.width, spread, to);
            } else {
                std::fill_n(to, vectors * LANES<T>, T(0));
            }
        }
    }

   private:
    void read_pixels(const View& image, const Channels& channels, int64_t y, int64_t width, int64_t spread, T* to) const {
        const int64_t step = spread * unit;
        if (step == 1 && image.stride[3] == 1) {
            read_row(image, channels.offset(image, y, 0), to, width);
            std::fill_n(to + width, vectors * LANES<T> - width, T(0));
            return;
        }
        if (spread > 1 || channels.lanes < unit || unit == 1) std::fill_n(to, vectors * LANES<T>, T(0));
        for (int64_t x = 0; x < width; ++x)
            read_row(image, channels.offset(image, y, x), to + x * step, channels.in_lanes ? channels.lanes : 1);
    }
};

// Where vectors of a plane go in an image: pixels within `size`, or the lanes of one pixel.
template <class T>
class Writer {
   public:
    Writer(const View& image, const Channels& channels, Size size, int64_t stride)
        : image_(image), channels_(channels), size_(size), stride_(stride), own_(image.dtype == own_dtype()) {}

    HAMLET_INLINE void write(int64_t y, int64_t vector, Vector<T> value) const {
        if (channels_.in_lanes) {
            put(channels_.offset(image_, y, vector), value, channels_.lanes);
        } else if (stride_ == 1 && image_.stride[3] == 1) {
            put(channels_.offset(image_, y, vector * LANES<T>), value, size_.width - vector * LANES<T>);
        } else {
            scatter(y, vector, value);
        }
    }

    // Zeros wherever the image has pixels beyond the size.
    void clear_rest() const {
        alignas(64) const T zeros[LANES<T>] = {};
        const int64_t lanes = channels_.in_lanes ? channels_.lanes : 1;
        for (int64_t y = 0; y < image_.size[2]; ++y)
            for (int64_t x = y < size_.height ? size_.width : 0; x < image_.size[3]; ++x)
                write_row(image_, channels_.offset(image_, y, x), zeros, lanes);
    }

   private:
    const View& image_;
    const Channels channels_;
    const Size size_;
    const int64_t stride_;
    const bool own_;

    static constexpr DType own_dtype() { return sizeof(T) == 4 ? DType::float32 : DType::float64; }

    HAMLET_INLINE void put(int64_t offset, Vector<T> value, int64_t count) const {
        if (own_) return store_first(reinterpret_cast<T*>(image_.data) + offset, value, count);
        alignas(64) T values[LANES<T>];
        store(values, value);
        write_row(image_, offset, values, std::min<int64_t>(count, LANES<T>));
    }

    // Every `stride`-th pixel, one by one.
    void scatter(int64_t y, int64_t vector, Vector<T> value) const {
        for (int64_t lane = 0; lane < LANES<T>; ++lane) {
            const int64_t x = vector * LANES<T> + lane;
            if (x % stride_ == 0 && x / stride_ < size_.width)
                write_one<T>(image_, channels_.offset(image_, y, x / stride_), value[lane]);
        }
    }
};

}  // namespace hamlet::HAMLET_ISA
