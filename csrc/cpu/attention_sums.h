// What the backward of attention adds up for keys and values.
#pragma once

#include "attention.h"

namespace hamlet::HAMLET_ISA {

// Sums for the rows of keys of a ring, of several heads: opened when their row is first reached, written when it is last.
template <class T>
class Sums {
   public:
    void begin(const View& view, Heads heads, const Ring& ring) {
        view_ = view, heads_ = heads, ring_ = ring, last_ = ring.first, pitch_ = padded<T>(view.size[4]);
        data_ = buffer_.room(heads.count * ring.capacity * ring.width * pitch_);
    }

    Rows<T> rows(int64_t head) const { return {data_ + head * ring_.capacity * ring_.width * pitch_, pitch_}; }

    void open(int64_t row) {
        for (; last_ < row; ++last_)
            for (int64_t head = 0; head < heads_.count; ++head)
                std::fill_n(rows(head).at(ring_.index(last_, 0)), ring_.width * pitch_, T(0));
    }

    // Rows [first, last), 0 where nothing was opened.
    void write(int64_t first, int64_t last) {
        with_storage<T>(view_.dtype, [&](auto* storage) {
            using S = std::remove_pointer_t<decltype(storage)>;
            T* zeros = zeros_.room(pitch_);
            std::fill_n(zeros, pitch_, T(0));
            for (int64_t y = first; y < last; ++y)
                for (int64_t x = 0; x < view_.size[2]; ++x)
                    for (int64_t head = 0; head < heads_.count; ++head) {
                        const bool exists = y >= ring_.first && y < last_ && x < ring_.width;
                        write_first(exists ? rows(head).at(ring_.index(y, x)) : zeros, view_.size[4],
                                    reinterpret_cast<S*>(view_.data) + heads_.plane(head).offset(view_, y, x));
                    }
        });
    }

   private:
    View view_;
    Heads heads_{};
    Ring ring_;
    int64_t last_ = 0, pitch_ = 0;
    T* data_ = nullptr;
    Buffer<T> buffer_, zeros_;
};

}  // namespace hamlet::HAMLET_ISA
