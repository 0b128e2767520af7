// How an attention is cut into tiles and shared memory: arithmetic alone, for the host too.
#pragma once

#include "builtins.h"

namespace hamlet::cuda {

constexpr int ATTENTION_THREADS = 128;
// A block owns TILE x TILE pixels of one head, each of its four warps PATCH x PATCH of them.
constexpr int TILE = 8, PATCH = 4, TILE_ROWS = TILE * TILE;

HAMLET_BOTH int tiles_along(int size) { return (size + TILE - 1) / TILE; }

enum class Pass { forward, queries, keys };

// Shared memory of a pass, offsets in bytes. The rows of its tile stay; those of a step come in stages.
template <int ITEM_BYTES, int D, Pass PASS>
struct AttentionPlan {
    static constexpr int PITCH_BYTES = (D + 8) * ITEM_BYTES;
    static constexpr int TILES = PASS == Pass::forward ? 1 : 2;
    // Pixels of a step. The pass by keys has two sums a key, and fewer registers for what is beside them.
    static constexpr int STEP = D * ITEM_BYTES > 256 || (PASS == Pass::keys && D > 64) ? 16 : 32;
    static constexpr int STEP_BYTES = STEP * PITCH_BYTES, SUMMARY_BYTES = PASS == Pass::keys ? STEP * 16 : 0;
    static constexpr int STAGE_BYTES = 2 * STEP_BYTES + SUMMARY_BYTES;
    static constexpr int STAGES_AHEAD = 2 * STEP_BYTES <= 10 * 1024 ? 2 : 1;
    static constexpr int TILE_BYTES = TILE_ROWS * PITCH_BYTES;

    // Marks of rows that were not finite, what warps tell each other, the tile, and the stages.
    static constexpr int MARKS = 0, SCRATCH = 2 * STEP * 4, ROWS_BEGIN = SCRATCH + 256;
    static constexpr int STAGES_BEGIN = ROWS_BEGIN + TILES * TILE_BYTES;
    static constexpr int SHARED_BYTES = STAGES_BEGIN + (STAGES_AHEAD + 1) * STAGE_BYTES;
};

}  // namespace hamlet::cuda
