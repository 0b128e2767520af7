// The built-ins as the checked execution on the CPU has them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../../view.h"
#include "../pack.h"
#include "execution.h"

#define HAMLET_DEVICE inline
#define HAMLET_BOTH inline
#define HAMLET_KERNEL(threads) void
#define HAMLET_PARAMETERS const
#define HAMLET_UNROLL
#define HAMLET_UNROLL_BY(count)
#define HAMLET_ROLLED

namespace hamlet::cuda {

constexpr const char* DEVICE_TYPE = "cpu";

using std::max;
using std::min;

inline int thread_index() { return host::running().index; }
inline int block_index() { return host::execution().block; }
inline int block_size() { return host::execution().threads; }

inline void synchronise(host::Site site = host::Site::current()) {
    host::running().wait(host::Thread::State::at_barrier, site);
}

inline void synchronise_warp(host::Site site = host::Site::current()) {
    const char nothing = 0;
    host::exchange(&nothing, 1, site);
    ++host::running().warp_barriers;
}

template <class T>
T shuffle(T value, int lane, host::Site site = host::Site::current()) {
    T result;
    std::memcpy(&result, host::exchange(&value, sizeof(T), site)[lane % WARP], sizeof(T));
    return result;
}

template <class T>
T shuffle_xor(T value, int lanes, host::Site site = host::Site::current()) {
    return shuffle(value, (thread_index() % WARP) ^ lanes, site);
}

inline bool any_of_warp(bool value, host::Site site = host::Site::current()) {
    const auto* of_lane = host::exchange(&value, sizeof value, site);
    return std::any_of(of_lane, of_lane + WARP, [](const char* lane) { return *lane != 0; });
}

inline float exp2_approximate(float exponent) { return std::exp2(exponent); }

template <class T>
struct Checked {
    T* at = nullptr;
    host::Memory* memory = nullptr;

    T load(int64_t i) const { return load_pack<1>(i).element[0]; }
    void store(int64_t i, T value) const { store_pack<1>(i, {{value}}); }
    template <int COUNT>
    Pack<T, COUNT> load_pack(int64_t i) const {
        Pack<T, COUNT> values;
        memory->read(at + i, sizeof values);
        std::memcpy(&values, at + i, sizeof values);
        return values;
    }
    template <int COUNT>
    void store_pack(int64_t i, Pack<T, COUNT> values) const {
        memory->write(at + i, sizeof values);
        std::memcpy(at + i, &values, sizeof values);
    }
};

template <class T>
struct Global : Checked<T> {
    explicit operator bool() const { return this->at != nullptr; }
    int misalignment() const { return int(reinterpret_cast<uintptr_t>(this->at) % COPY_BYTES / sizeof(T)); }
};

template <class T>
struct Shared : Checked<T> {
    Shared operator+(int i) const { return {{this->at + i, this->memory}}; }
    template <class U>
    Shared<U> as(int offset) const {
        return {{reinterpret_cast<U*>(reinterpret_cast<char*>(this->at) + offset), this->memory}};
    }
};

inline Shared<char> shared_memory() {
    host::Execution& run = host::execution();
    return {{run.shared_base, run.shared.get()}};
}

template <class T>
void copy_async(Shared<T> to, int i, Global<T> from, int64_t j, bool exists) {
    if (exists) from.memory->read(from.at + j, COPY_BYTES);
    to.memory->begin_copy(to.at + i, COPY_BYTES);
    const char* source = exists ? reinterpret_cast<const char*>(from.at + j) : nullptr;
    host::running().open.push_back({reinterpret_cast<char*>(to.at + i), source, to.memory});
}

inline void commit_copies() { host::running().commit(); }

template <int PENDING>
void wait_for_copies() {
    host::running().land(PENDING);
}

template <class T>
Global<T> global(const View& view) {
    if (!view) return {};
    int64_t elements = 1;
    for (int i = 0; i < MAX_DIMENSIONS && view.size[i] > 0; ++i) elements += (view.size[i] - 1) * view.stride[i];
    return {{reinterpret_cast<T*>(view.data), host::register_global(view.data, size_t(elements) * sizeof(T))}};
}

inline bool bulk_copies = false;

// One multiprocessor, so that small tests have blocks with many tiles.
inline DeviceLimits limits_of_device(int) { return {227 * 1024, 1, bulk_copies}; }

class Call {
   public:
    Call(int, uintptr_t) {}
    ~Call() { host::forget_globals(); }

    template <class Parameters>
    void launch(const char* name, void (*kernel)(Parameters), int64_t blocks, int threads, int shared_bytes,
                const Parameters& parameters) const {
        if (shared_bytes > limits_of_device(0).shared_bytes)
            throw std::runtime_error(std::string(name) + ": it asks for more shared memory than there is");
        host::run(name, blocks, threads, shared_bytes, [&] { kernel(parameters); });
    }
};

}  // namespace hamlet::cuda
