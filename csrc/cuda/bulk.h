// The bulk copy engine, from sm_90 on: a box of a tensor of five dimensions into shared memory, by one thread's one
// instruction, zeros where the box leaves the tensor.
#pragma once

#include "builtins.h"

namespace hamlet::cuda {

constexpr int RANK = 5;
constexpr int MOST_APART = 8;

// A tensor in memory and the boxes that are copied of it, innermost dimension first, all in elements.
struct Boxes {
    int64_t size[RANK], stride[RANK];  // of the tensor
    int taken[RANK];                   // of a box
    int apart[RANK];                   // how far apart in the tensor neighbours in a box are
};

// The same as the driver takes it: strides are bytes, without the innermost, and a side of a box counts what it skips.
struct EncodedBoxes {
    uint64_t size[RANK], stride[RANK - 1];
    uint32_t box[RANK], apart[RANK];
};

inline EncodedBoxes encoded(const Boxes& boxes, int itemsize) {
    EncodedBoxes result;
    for (int i = 0; i < RANK; ++i) {
        result.size[i] = boxes.size[i];
        result.box[i] = boxes.taken[i] * boxes.apart[i];
        result.apart[i] = boxes.apart[i];
        if (i > 0) result.stride[i - 1] = boxes.stride[i] * itemsize;
    }
    return result;
}

// Whether the engine can copy such boxes, from `address` on. Their sizes are those of an image that is not empty.
inline bool engine_can_copy(const Boxes& boxes, const void* address, int itemsize) {
    constexpr uint32_t MOST = 256;
    const EncodedBoxes asked = encoded(boxes, itemsize);
    if (reinterpret_cast<uintptr_t>(address) % COPY_BYTES || asked.box[0] * itemsize % COPY_BYTES) return false;
    for (uint64_t stride : asked.stride)
        if (stride % COPY_BYTES) return false;
    for (int i = 0; i < RANK; ++i)
        if (boxes.apart[i] > MOST_APART || asked.box[i] > MOST) return false;
    return true;
}

}  // namespace hamlet::cuda

#if defined(__CUDACC__)
#include "device/bulk.h"
#else
#include "host/bulk.h"
#endif
