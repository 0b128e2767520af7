// Images, what of them is valid, how far apart the taps of a filter are, and tiles along an axis.
#pragma once

#include "number.h"

namespace hamlet::cuda {

constexpr int MAX_STEPS = 32;

template <class T>
struct Image {
    Global<T> data;
    int64_t count = 0;  // elements, all of them in one piece
    int64_t sample = 0, channel = 0, row = 0, column = 0;
    int height = 0, width = 0;

    HAMLET_DEVICE int64_t offset(int of_sample, int of_channel, int y, int x) const {
        return of_sample * sample + of_channel * channel + y * row + x * column;
    }
};

// Of every dilation block of every sample.
struct Dilations {
    Global<int64_t> tensor;  // (samples, blocks), or absent: `steps`
    int steps[MAX_STEPS] = {};
    int greatest = 1;

    HAMLET_DEVICE int of(int sample, int block, int blocks) const {
        const int step = tensor ? int(min(tensor.load(int64_t(sample) * blocks + block), int64_t(greatest)))
            : steps[block];
        return max(min(step, greatest), 1);
    }
};

struct Limits {
    int height, width;
};

// Where index of a grid that `spread` - 1 zeros widen is stored, or -1.
HAMLET_DEVICE int position(int index, int spread, int limit) {
    if (spread == 2) index = index & 1 ? -1 : index >> 1;
    return index >= 0 && index < limit ? index : -1;
}

// What an extent, on a grid that has `factor` pixels for one of the image along each axis, leaves of the image.
template <class T>
HAMLET_DEVICE Limits valid_part(const Image<T>& image, Global<int64_t> extent, int sample, int factor) {
    if (!extent) return {image.height, image.width};
    const int rows = int(extent.load(sample * 2)), columns = int(extent.load(sample * 2 + 1));
    return {min((rows + factor - 1) / factor, image.height), min((columns + factor - 1) / factor, image.width)};
}

// The tiles of one axis: positions that are `step` apart from each of `classes` starts, at most `length` at a time.
struct Walk {
    int classes, pieces, length;

    HAMLET_BOTH Walk(int size, int step, int most, int multiple) {
        classes = min(step, size);
        const int longest = (size + step - 1) / step;
        pieces = (longest + most - 1) / most;
        const int even = (longest + pieces - 1) / pieces;
        length = (even + multiple - 1) / multiple * multiple;
    }
    HAMLET_DEVICE int tiles() const { return classes * pieces; }
    HAMLET_DEVICE int start(int tile, int step) const {
        if (classes == 1) return tile * length * step;
        return tile % classes + tile / classes * length * step;
    }
};

}  // namespace hamlet::cuda
