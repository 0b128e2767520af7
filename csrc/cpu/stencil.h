// Which pixels a convolution of any kernel and stride adds up, as vectors of a grid laid out flat.
//
// With a stride s the pixels of an image fall into s x s phases, each a grid as large as the output: seen from there every
// tap is a fixed step within one phase, as it is where the stride is 1. Masks keep every step inside the grid.
#pragma once

#include "columns.h"

namespace hamlet::HAMLET_ISA {

struct StencilKey {
    Size grid, valid;          // of a phase, and the part of the image that holds something
    int64_t height, width;     // of the kernel
    int64_t dilation, stride;
    int64_t phase_y, phase_x;  // the targets' phase in a transposed stencil, else -1
    bool operator==(const StencilKey&) const = default;

    bool transposed() const { return phase_y >= 0; }
};

template <class T>
class Stencil {
   public:
    struct Tap {
        int64_t index;   // in the kernel
        int64_t offset;  // from the target's place to the source's
    };
    std::vector<Tap> taps;
    int64_t spots = 0;  // vectors of the grid, LANES apart
    int64_t whole = 0;  // the first of them, all of whose lanes are targets that hold something

    // Of every spot: lanes whose source holds something, for one tap; lanes whose target does; lanes within the grid.
    const Mask<T>* sources(int64_t tap) const { return sources_.data() + tap * spots; }
    Mask<T> target(int64_t spot) const { return targets_[spot]; }
    Mask<T> inside(int64_t spot) const { return first_lanes<T>(key_.grid.height * key_.grid.width - spot * LANES<T>); }

    bool is_for(const StencilKey& key) const { return key == key_; }

    void make(const StencilKey& key) {
        key_ = key;
        spots = ceiling(key.grid.height * key.grid.width, LANES<T>);
        taps.clear();
        std::vector<Axis> rows, columns;
        for (int64_t y = 0; y < key.height; ++y)
            for (int64_t x = 0; x < key.width; ++x) {
                const Axis row = axis(y - key.height / 2, key.phase_y, key.grid.height, key.valid.height);
                const Axis column = axis(x - key.width / 2, key.phase_x, key.grid.width, key.valid.width);
                if (!row.reached || !column.reached) continue;
                const int64_t phase = (row.phase * key.stride + column.phase) * key.grid.height * key.grid.width;
                taps.push_back({y * key.width + x, phase + row.shift * key.grid.width + column.shift});
                rows.push_back(row);
                columns.push_back(column);
            }
        sources_.clear();
        targets_.clear();
        const Axis row = own(key.phase_y, key.grid.height, key.valid.height);
        const Axis column = own(key.phase_x, key.grid.width, key.valid.width);
        for (size_t tap = 0; tap < taps.size(); ++tap)
            for (int64_t spot = 0; spot < spots; ++spot) sources_.push_back(lanes(spot, rows[tap], columns[tap]));
        for (int64_t spot = 0; spot < spots; ++spot) targets_.push_back(lanes(spot, row, column));
        for (whole = 0; whole < spots && every<T>(targets_[whole]);) ++whole;
    }

   private:
    // One tap along one axis: where it leads, and from which places of the grid it leads to a pixel that holds something.
    struct Axis {
        bool reached;
        int64_t phase, shift;
        std::vector<bool> holds;
    };
    StencilKey key_{{0, 0}, {0, 0}, 0, 0, 0, 0, 0, 0};
    std::vector<Mask<T>> sources_, targets_;

    Axis axis(int64_t tap, int64_t phase, int64_t places, int64_t valid) const {
        const int64_t stride = key_.stride, step = (key_.transposed() ? phase - tap * key_.dilation : tap * key_.dilation);
        const int64_t shift = step >= 0 ? step / stride : -ceiling(-step, stride), rest = step - shift * stride;
        Axis axis{!key_.transposed() || rest == 0, key_.transposed() ? 0 : rest, shift, std::vector<bool>(places)};
        for (int64_t place = 0; place < places; ++place) {
            const int64_t pixel = key_.transposed() ? place + shift : place * stride + step;
            axis.holds[place] = pixel >= 0 && pixel < (key_.transposed() ? ceiling(valid, stride) : valid);
        }
        return axis;
    }

    Axis own(int64_t phase, int64_t places, int64_t valid) const {
        Axis axis{true, 0, 0, std::vector<bool>(places)};
        for (int64_t place = 0; place < places; ++place)
            axis.holds[place] = place * key_.stride + std::max<int64_t>(phase, 0) < valid;
        return axis;
    }

    Mask<T> lanes(int64_t spot, const Axis& rows, const Axis& columns) const {
        int64_t y = spot * LANES<T> / key_.grid.width, x = spot * LANES<T> % key_.grid.width;
        uint32_t bits = 0;
        for (int lane = 0; lane < LANES<T> && y < key_.grid.height; ++lane) {
            bits |= uint32_t(rows.holds[y] && columns.holds[x]) << lane;
            if (++x == key_.grid.width) x = 0, ++y;
        }
        return mask_of<T>(bits);
    }
};

}  // namespace hamlet::HAMLET_ISA
