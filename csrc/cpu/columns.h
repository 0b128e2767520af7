// How a depthwise kernel walks over a plane: vectors of pixels, going down the rows that are a dilation apart.
//
// As many rows as the dilation says, seen as one, make a row whose neighbours above and below are the vertical taps. Masks
// keep every tap inside the plane: nothing is copied.
#pragma once

#include <algorithm>
#include <vector>

#include "convert.h"

namespace hamlet::HAMLET_ISA {

struct Size {
    int64_t height, width;
    bool operator==(const Size&) const = default;
};

constexpr int MOST_TAPS = 5;

template <class T>
struct Column {
    int64_t offset;            // of the vector's first pixel
    Mask<T> pixels[MOST_TAPS]; // lanes whose pixel, moved by a horizontal tap, holds something
    Mask<T> inside;            // lanes that are pixels of the image
    bool whole;                // in every row but the last a whole vector lies in the plane, and all of it holds something
};

struct Walk {
    Size image, valid;  // the image, and the part of it that holds something
    int64_t dilation, taps;
    bool operator==(const Walk&) const = default;
};

template <class T>
class Columns {
   public:
    int64_t rows = 0, pitch = 0, reach = 0, middle = 0;
    std::vector<Column<T>> body, last;  // of all rows but the last, which may be cut short

    bool is_for(const Walk& walk) const { return walk == made_; }

    void make(const Walk& walk) {
        made_ = walk;
        rows = ceiling(walk.valid.height, walk.dilation);
        pitch = walk.dilation * walk.image.width;
        reach = walk.dilation;
        middle = walk.taps / 2;
        body.clear();
        last.clear();
        const int64_t pixels = std::min(walk.dilation, walk.image.height) * walk.image.width;
        for (int64_t first = 0; first < pixels; first += LANES<T>) {
            body.push_back(column(first, 0, pixels));
            last.push_back(column(first, (rows - 1) * walk.dilation, pixels));
        }
    }

    // Zeros in the image's rows below those that are walked over.
    template <class S>
    void clear_below(S* image) const {
        const int64_t pixels = made_.image.height * made_.image.width;
        for (int64_t first = rows * pitch; first < pixels; first += LANES<T>)
            store_where(image + first, Vector<T>{}, first_lanes<T>(pixels - first));
    }

   private:
    Walk made_{{0, 0}, {0, 0}, 0, 0};

    Column<T> column(int64_t first, int64_t top, int64_t pixels) const {
        Column<T> column{};
        column.offset = first;
        column.whole = made_.valid == made_.image &&
                       (rows - 2) * pitch + first + LANES<T> <= made_.image.height * made_.image.width;
        for (int64_t tap = 0; tap < made_.taps; ++tap) {
            const int64_t right = (tap - made_.taps / 2) * made_.dilation;
            column.pixels[tap] = lanes(first, pixels, [&](int64_t pixel) {
                const int64_t x = pixel % made_.image.width + right;
                return top + pixel / made_.image.width < made_.valid.height && x >= 0 && x < made_.valid.width;
            });
        }
        column.inside =
            lanes(first, pixels, [&](int64_t pixel) { return top + pixel / made_.image.width < made_.image.height; });
        return column;
    }

    template <class Holds>
    Mask<T> lanes(int64_t first, int64_t pixels, const Holds& holds) const {
        uint32_t bits = 0;
        for (int64_t lane = 0; lane < std::min<int64_t>(LANES<T>, pixels - first); ++lane)
            bits |= uint32_t(holds(first + lane)) << lane;
        return mask_of<T>(bits);
    }
};

}  // namespace hamlet::HAMLET_ISA
