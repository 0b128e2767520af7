// The bulk copy engine, from sm_90 on: a box of a tensor of four dimensions into shared memory, by one thread's one
// instruction, zeros where the box leaves the tensor.
#pragma once

#include "builtins.h"

namespace hamlet::cuda {

// A tensor in memory and the boxes that are copied of it, innermost dimension first; its elements lie without gaps.
struct Boxes {
    int64_t size[4];   // of the tensor
    int taken[4];      // elements of a box
    int apart[4];      // how far apart in the tensor neighbours in a box are; innermost 1
};

constexpr int MOST_APART = 8;

// Whether the engine can copy such boxes of elements of `itemsize` bytes, from `address` on.
inline bool engine_can_copy(const Boxes& boxes, const void* address, int itemsize) {
    constexpr int MOST = 256;
    if (reinterpret_cast<uintptr_t>(address) % COPY_BYTES || boxes.taken[0] * itemsize % COPY_BYTES ||
        boxes.size[0] * itemsize % COPY_BYTES || boxes.apart[0] != 1)
        return false;
    for (int i = 0; i < 4; ++i)
        if (boxes.apart[i] > MOST_APART || boxes.taken[i] * boxes.apart[i] > MOST) return false;
    return true;
}

}  // namespace hamlet::cuda

#if defined(__CUDACC__)
#include "device/bulk.h"
#else
#include "host/bulk.h"
#endif
