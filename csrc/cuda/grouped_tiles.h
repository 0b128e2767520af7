// Tiles of a grouped convolution: pieces of the target, whose positions are one dilation apart, as many as make a tile.
#pragma once

#include "grouped_plan.h"
#include "image.h"
#include "products.h"

namespace hamlet::cuda {

// One way to cut a grid into pieces, all of one size: of its columns first, then of as many rows as there is room for.
struct Cut {
    Walk across;
    int staged_columns;  // of a piece with its halo
    int most_rows;
    Walk down;
    int staged;          // pixels of a piece with its halo
    int pieces;          // of a tile

    HAMLET_DEVICE Cut(const GroupedShape& shape, int capacity, int step, int most_columns)
        : across(shape.target_width, step, most_columns, 1),
          staged_columns(shape.skip * (across.length - 1) + shape.filter_width),
          most_rows(min(TILE_PIXELS / across.length,
                        (capacity / staged_columns - shape.filter_height + shape.skip) / shape.skip)),
          down(shape.target_height, step, max(most_rows, 1), 1),
          staged((shape.skip * (down.length - 1) + shape.filter_height) * staged_columns),
          pieces(max(min(TILE_PIXELS / (down.length * across.length), capacity / staged), 1)) {}

    HAMLET_DEVICE bool fits() const { return most_rows > 0; }
    HAMLET_DEVICE int number() const { return down.tiles() * across.tiles(); }
    HAMLET_DEVICE int tiles() const { return int((int64_t(number()) + pieces - 1) / pieces); }
    HAMLET_DEVICE int piece_pixels() const { return down.length * across.length; }
};

constexpr int CUTS = 32;

// Cut number `which` has at most 8 columns for each that precedes it; cost orders them: few tiles, then small halos.
HAMLET_DEVICE Cut cut_of(const GroupedShape& shape, int capacity, int step, int which) {
    return Cut(shape, capacity, step, min((which + 1) * 8, TILE_PIXELS));
}

HAMLET_DEVICE int64_t cost(const Cut& cut, int which) {
    const int64_t tiles = cut.fits() ? cut.tiles() : int64_t(1) << 40;
    return (tiles * (2 * MOST_STAGED) + min(cut.pieces * cut.staged, 2 * MOST_STAGED - 1)) * CUTS + which;
}

// The best of them, each lane of the warp having tried one.
HAMLET_DEVICE Cut best_cut(const GroupedShape& shape, int capacity, int step) {
    int64_t best = cost(cut_of(shape, capacity, step, lane_index()), lane_index());
    HAMLET_ROLLED
    for (int lanes = WARP / 2; lanes; lanes /= 2) best = min(best, shuffle_xor(best, lanes));
    return cut_of(shape, capacity, step, int(best % CUTS));
}

// A place in a tile, in one register: of which piece, and where in it.
struct Spot {
    static constexpr uint32_t NONE = 0xffffffff;
    int piece, row, column;

    HAMLET_DEVICE static uint32_t packed(int piece, int row, int column) {
        return uint32_t(piece) << 24 | uint32_t(row) << 12 | uint32_t(column);
    }
    HAMLET_DEVICE explicit Spot(uint32_t from)
        : piece(int(from >> 24)), row(int(from >> 12 & 0xfff)), column(int(from & 0xfff)) {}
};

// Where the pieces of a tile begin; it is asked for one piece many times before it is for the next.
struct Corner {
    const Cut& cut;
    int step, tile, piece = -1;
    int y = 0, x = 0;
    bool exists = false;

    HAMLET_DEVICE void move(int to) {
        if (to == piece) return;
        piece = to;
        const int64_t number = int64_t(tile) * cut.pieces + to;
        exists = number < cut.number();
        const int across = cut.across.tiles(), row = int(number) / across;
        if (exists) y = cut.down.start(row, step), x = cut.across.start(int(number) - row * across, step);
    }
};

}  // namespace hamlet::cuda
