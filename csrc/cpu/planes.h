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
    int64_t sample, first, lanes;  // lanes: 1 where the pixels are in the lanes
    bool in_lanes;

    int64_t offset(const View& image, int64_t y, int64_t x) const {
        return sample * image.stride[0] + first * image.stride[1] + y * image.stride[2] + x * image.stride[3];
    }
};

template <class T>
class Plane {
   public:
    int64_t vectors = 0;  // of a row
    int64_t unit = 1;     // between pixels

    T* row(int64_t y) const { return data_ + y * pitch_; }
    int64_t pitch() const { return pitch_; }

    // Room for `height` rows of `width` pixels with `padding` pixels of zeros on both sides.
    void make(int64_t height, int64_t width, int64_t padding, bool in_lanes) {
        if (height == height_ && width == width_ && padding == padding_ && in_lanes == (unit > 1)) return;
        height_ = height, width_ = width, padding_ = padding;
        unit = in_lanes ? LANES<T> : 1;
        vectors = ceiling(width * unit, LANES<T>);
        const int64_t side = ceiling(padding * unit, LANES<T>) * LANES<T>;
        pitch_ = vectors * LANES<T> + 2 * side;
        data_ = buffer_.room(height * pitch_) + side;
        for (int64_t y = 0; y < height; ++y) {
            clear(row(y) - side, side);
            clear(row(y) + vectors * LANES<T>, side);
        }
    }

    // Read pixels (y, x) of the image into pixels (y * spread, x * spread), zeros between.
    void read(const View& image, const Channels& channels, Size size, int64_t spread) const {
        if (vectors == 0) return;
        const bool own = image.dtype == (sizeof(T) == 4 ? DType::float32 : DType::float64);
        const bool together = spread == 1 && (unit > 1 || image.stride[3] == 1);
        for (int64_t y = 0; y < height_; ++y) {
            T* to = row(y);
            if (y % spread || y / spread >= size.height) {
                clear(to, vectors * LANES<T>);
            } else if (own && together) {
                copy(reinterpret_cast<const T*>(image.data) + channels.offset(image, y, 0), image.stride[3],
                     channels.lanes, to);
            } else {
                clear(to, vectors * LANES<T>);
                convert(image, channels, y / spread, size.width, spread, to);
            }
        }
    }

   private:
    T* data_ = nullptr;  // of row 0, pixel 0
    int64_t pitch_ = 0, height_ = -1, width_ = -1, padding_ = -1;
    Buffer<T> buffer_;

    // Whole vectors of zeros.
    static void clear(T* to, int64_t count) {
        for (int64_t i = 0; i < count; i += LANES<T>) store(to + i, Vector<T>{});
    }

    void copy(const T* from, int64_t stride, int64_t lanes, T* to) const {
        if (unit > 1) {
            for (int64_t x = 0; x < width_; ++x) store(to + x * LANES<T>, load_first(from + x * stride, lanes));
            return;
        }
        const int64_t last = (vectors - 1) * LANES<T>;
        for (int64_t x = 0; x < last; x += LANES<T>) store(to + x, load(from + x));
        store(to + last, load_first(from + last, width_ - last));
    }

    void convert(const View& image, const Channels& channels, int64_t y, int64_t width, int64_t spread, T* to) const {
        if (unit == 1 && spread == 1 && image.stride[3] == 1)
            return read_row(image, channels.offset(image, y, 0), to, width);
        for (int64_t x = 0; x < width; ++x)
            read_row(image, channels.offset(image, y, x), to + x * spread * unit, channels.lanes);
    }
};

// Where a kernel puts the vectors of a plane: straight into the image, or, where its elements are of another dtype or not
// next to each other, into scratch that `finish` takes them from. A call in the kernels' loops would spill their sums.
template <class T>
class Target {
   public:
    // `stride`: every so many rows and pixels of the plane are the image's. `vectors`: of one row of the plane.
    Target(const View& image, const Channels& channels, Size size, int64_t stride, int64_t vectors, Buffer<T>& scratch)
        : image_(image), channels_(channels), size_(size), stride_(stride) {
        const bool own = image.dtype == (sizeof(T) == 4 ? DType::float32 : DType::float64);
        direct_ = own && (channels.in_lanes || (stride == 1 && image.stride[3] == 1));
        last_ = vectors - 1;
        body_ = direct_ && channels.in_lanes ? channels.lanes : LANES<T>;
        tail_ = direct_ && !channels.in_lanes ? size.width - last_ * LANES<T> : body_;
        row_ = direct_ ? image.stride[2] : vectors * LANES<T>;
        vector_ = direct_ && channels.in_lanes ? image.stride[3] : LANES<T>;
        data_ = direct_ ? reinterpret_cast<T*>(image.data) + channels.offset(image, 0, 0)
                        : scratch.room(size.height * row_);
    }

    // Where a vector begins, how many of its lanes count, and how far its neighbour below is.
    HAMLET_INLINE T* at(int64_t y, int64_t vector) const { return data_ + y * row_ + vector * vector_; }
    HAMLET_INLINE int64_t count(int64_t vector) const { return vector == last_ ? tail_ : body_; }
    int64_t row() const { return row_; }

    HAMLET_INLINE void write(int64_t y, int64_t vector, Vector<T> value) const {
        store_first(at(y, vector), value, count(vector));
    }

    // Zeros wherever the image has pixels beyond the size; and what went into scratch.
    void finish() const {
        if (!direct_)
            for (int64_t y = 0; y < size_.height; ++y) convert(y);
        if (size_.height == image_.size[2] && size_.width == image_.size[3]) return;
        alignas(64) const T zeros[LANES<T>] = {};
        for (int64_t y = 0; y < image_.size[2]; ++y)
            for (int64_t x = y < size_.height ? size_.width : 0; x < image_.size[3]; ++x)
                write_row(image_, channels_.offset(image_, y, x), zeros, channels_.lanes);
    }

   private:
    const View& image_;
    const Channels channels_;
    const Size size_;
    const int64_t stride_;
    bool direct_;
    T* data_;
    int64_t row_, vector_, last_, body_, tail_;

    void convert(int64_t y) const {
        const T* from = data_ + y * row_;
        const int64_t step = stride_ * (channels_.in_lanes ? LANES<T> : 1);
        if (step == 1 && image_.stride[3] == 1)
            return write_row(image_, channels_.offset(image_, y, 0), from, size_.width);
        for (int64_t x = 0; x < size_.width; ++x)
            write_row(image_, channels_.offset(image_, y, x), from + x * step, channels_.lanes);
    }
};

}  // namespace hamlet::HAMLET_ISA
