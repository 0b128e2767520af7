// The bulk copy engine as the checked execution has it: a box lands when it is waited for, not before.
#pragma once

namespace hamlet::cuda {

#define HAMLET_BULK_COPIES true

using CopyBarrier = Shared<uint64_t>;

struct TensorMap {
    const char* base = nullptr;
    host::Memory* memory = nullptr;
    Boxes boxes{};
    int itemsize = 0;
};

namespace host {

// A box's elements, each as a copy of its own; null where the box leaves the tensor.
inline std::vector<Copy> copies_of(const TensorMap& from, const int (&corner)[4], char* to, Memory* memory) {
    const Boxes& boxes = from.boxes;
    std::vector<Copy> copies;
    int i[4];
    for (i[3] = 0; i[3] < boxes.taken[3]; ++i[3])
        for (i[2] = 0; i[2] < boxes.taken[2]; ++i[2])
            for (i[1] = 0; i[1] < boxes.taken[1]; ++i[1])
                for (i[0] = 0; i[0] < boxes.taken[0]; ++i[0], to += from.itemsize) {
                    bool exists = true;
                    int64_t offset = 0;
                    for (int d = 3; d >= 0; --d) {
                        const int64_t at = corner[d] + int64_t(i[d]) * boxes.apart[d];
                        exists = exists && at >= 0 && at < boxes.size[d];
                        offset = offset * boxes.size[d] + at;
                    }
                    const char* source = exists ? from.base + offset * from.itemsize : nullptr;
                    if (source) from.memory->read(source, from.itemsize);
                    copies.push_back({to, source, memory, size_t(from.itemsize)});
                }
    return copies;
}

}  // namespace host

inline int64_t boxes_copied = 0;

inline void initialise(CopyBarrier barrier) {
    barrier.store(0, 0);
    host::execution().arrivals[barrier.at] = {};
}

template <class T>
void copy_box(Shared<T> to, const TensorMap& from, const int (&corner)[4], CopyBarrier barrier, int bytes) {
    constexpr int ALIGNMENT = 128;
    barrier.load(0);
    if (reinterpret_cast<uintptr_t>(to.at) % ALIGNMENT)
        host::fail("copies a box to an address that is no multiple of " + std::to_string(ALIGNMENT));
    std::vector<host::Copy> copies = host::copies_of(from, corner, reinterpret_cast<char*>(to.at), to.memory);
    if (size_t(bytes) != copies.size() * sizeof(T))
        host::fail("expects " + std::to_string(bytes) + " bytes of a box that has " +
                   std::to_string(copies.size() * sizeof(T)));
    for (const host::Copy& copy : copies) to.memory->begin_copy(copy.to, copy.bytes);
    host::Arrival& arrival = host::execution().arrivals[barrier.at];
    if (!arrival.under_way.empty()) host::fail("copies a box before the last of the same barrier was waited for");
    arrival.under_way = std::move(copies);
    ++boxes_copied;
}

inline void wait_for_box(CopyBarrier barrier, int turn, host::Site site = host::Site::current()) {
    barrier.load(0);
    host::Thread& thread = host::running();
    host::Arrival& arrival = host::execution().arrivals[barrier.at];
    thread.awaited = &arrival, thread.turn = turn;
    if (!arrival.can_pass(turn)) thread.wait(host::Thread::State::at_copy, site);
    if (arrival.turns % 2 == uint32_t(turn & 1)) arrival.land();
    thread.waited.insert(arrival.landing);
}

template <class T>
TensorMap tensor_map(Global<T> tensor, const Boxes& boxes) {
    if (!engine_can_copy(boxes, tensor.at, sizeof(T)))
        throw std::runtime_error("tensor_map: the driver would refuse such boxes");
    return {reinterpret_cast<const char*>(tensor.at), tensor.memory, boxes, sizeof(T)};
}

}  // namespace hamlet::cuda
