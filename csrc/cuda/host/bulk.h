// The bulk copy engine as the checked execution has it: a box lands when it is waited for, not before.
#pragma once

namespace hamlet::cuda {

#define HAMLET_BULK_COPIES true

using CopyBarrier = Shared<uint64_t>;

struct TensorMap {
    const char* base = nullptr;
    host::Memory* memory = nullptr;
    EncodedBoxes boxes{};
    int itemsize = 0;
};

namespace host {

// A box's elements, each as a copy of its own; null where the box leaves the tensor.
inline std::vector<Copy> copies_of(const TensorMap& from, const int (&corner)[RANK], char* to, Memory* memory) {
    const EncodedBoxes& boxes = from.boxes;
    std::vector<Copy> copies;
    for (int number = 0;; ++number, to += from.itemsize) {
        const char* source = from.base;
        int left = number;
        for (int d = 0; d < RANK; ++d) {
            const int taken = (boxes.box[d] + boxes.apart[d] - 1) / boxes.apart[d];
            const int64_t at = corner[d] + int64_t(left % taken) * boxes.apart[d];
            left /= taken;
            if (at < 0 || at >= int64_t(boxes.size[d])) source = nullptr;
            if (source) source += at * (d > 0 ? int64_t(boxes.stride[d - 1]) : from.itemsize);
        }
        if (left > 0) return copies;
        if (source) from.memory->read(source, from.itemsize);
        copies.push_back({to, source, memory, size_t(from.itemsize)});
    }
}

// What cuda.h says of the arguments of cuTensorMapEncodeTiled.
inline bool driver_accepts(const EncodedBoxes& boxes, const void* address, int itemsize) {
    bool accepts = reinterpret_cast<uintptr_t>(address) % 16 == 0 && boxes.box[0] * itemsize % 16 == 0;
    for (uint64_t bytes : boxes.stride) accepts = accepts && bytes % 16 == 0 && bytes < uint64_t(1) << 40;
    for (uint64_t size : boxes.size) accepts = accepts && size >= 1 && size <= uint64_t(1) << 32;
    for (uint32_t side : boxes.box) accepts = accepts && side >= 1 && side <= 256;
    for (uint32_t step : boxes.apart) accepts = accepts && step >= 1 && step <= 8;
    return accepts;
}

constexpr uint64_t COUNTER = 0x6261727269657221;

inline Arrival& arrival_of(CopyBarrier barrier) {
    if (barrier.load(0) != COUNTER) fail("uses a barrier of boxes that something else was written over");
    return execution().arrivals[barrier.at];
}

}  // namespace host

inline int64_t boxes_copied = 0;

inline void initialise(CopyBarrier barrier) {
    if (host::execution().arrivals.contains(barrier.at)) host::fail("initialises a barrier of boxes once more");
    barrier.store(0, host::COUNTER);
    host::execution().arrivals[barrier.at] = {};
}

inline void leave_to_engine() { ++host::running().fences; }

template <class T>
void copy_box(Shared<T> to, const TensorMap& from, const int (&corner)[RANK], CopyBarrier barrier, int bytes) {
    constexpr int ALIGNMENT = 128;
    host::Arrival& arrival = host::arrival_of(barrier);
    if (from.itemsize != sizeof(T)) host::fail("copies a box of a tensor of other elements");
    if (reinterpret_cast<uintptr_t>(to.at) % ALIGNMENT)
        host::fail("copies a box to an address that is no multiple of " + std::to_string(ALIGNMENT));
    std::vector<host::Copy> copies = host::copies_of(from, corner, reinterpret_cast<char*>(to.at), to.memory);
    if (size_t(bytes) != copies.size() * sizeof(T))
        host::fail("expects " + std::to_string(bytes) + " bytes of a box that has " +
                   std::to_string(copies.size() * sizeof(T)));
    for (const host::Copy& copy : copies) to.memory->begin_box(copy.to, copy.bytes);
    if (!arrival.under_way.empty()) host::fail("copies a box before the last of the same barrier was waited for");
    arrival.under_way = std::move(copies);
    ++boxes_copied;
}

inline void wait_for_box(CopyBarrier barrier, int turn, host::Site site = host::Site::current()) {
    host::Thread& thread = host::running();
    host::Arrival& arrival = host::arrival_of(barrier);
    thread.awaited = &arrival, thread.turn = turn;
    while (!arrival.can_pass(turn)) thread.wait(host::Thread::State::at_copy, site);
    if (arrival.turns % 2 == uint32_t(turn & 1)) arrival.land();
    thread.waited.insert(arrival.landing);
}

template <class T>
TensorMap tensor_map(Global<T> tensor, const Boxes& boxes) {
    const EncodedBoxes asked = encoded(boxes, sizeof(T));
    if (!host::driver_accepts(asked, tensor.at, sizeof(T)))
        throw std::runtime_error("tensor_map: the driver would refuse such boxes");
    return {reinterpret_cast<const char*>(tensor.at), tensor.memory, asked, sizeof(T)};
}

}  // namespace hamlet::cuda
