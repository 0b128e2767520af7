// Neighbouring elements that are read or written together, and what a device has of what they need.
#pragma once

namespace hamlet::cuda {

template <class T, int COUNT>
struct alignas(sizeof(T) * COUNT) Pack {
    T element[COUNT];
};

constexpr int WARP = 32;
constexpr int COPY_BYTES = 16;  // of an asynchronous copy

template <class T>
constexpr int COPIED = COPY_BYTES / int(sizeof(T));

struct DeviceLimits {
    int shared_bytes = 0;  // of a block, dynamic
    int multiprocessors = 1;
    bool bulk_copies = false;  // whether there is a bulk copy engine
};

}  // namespace hamlet::cuda
