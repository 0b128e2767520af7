// Memory that will be needed soon, asked for a little at a time.
#pragma once

#include "convert.h"

namespace hamlet::HAMLET_ISA {

// Rows of one head lie far apart, where no hardware looks ahead, and a processor drops what is asked for in one burst:
// the lines of the next tile are asked for between the products of this one.
class Ahead {
   public:
    void clear() { count_ = next_ = 0; }

    void add(const View& view, int64_t offset, int64_t channels) {
        const int64_t size = element_size(view.dtype);
        const char* begin = view.data + offset * size;
        for (int64_t byte = 0; byte < channels * size && count_ < MOST; byte += LINE) lines_[count_++] = begin + byte;
    }

    // Ask for so many of the lines that all are asked for in `steps` calls.
    void begin(int steps) { share_ = (count_ - next_ + steps - 1) / (steps > 0 ? steps : 1); }

    HAMLET_INLINE void step() {
        for (int i = 0; i < share_ && next_ < count_; ++i) __builtin_prefetch(lines_[next_++]);
    }

   private:
    static constexpr int MOST = 512, LINE = 64;
    const char* lines_[MOST];
    int count_ = 0, next_ = 0, share_ = 0;
};

}  // namespace hamlet::HAMLET_ISA
