// Memory of one thread, kept between calls: allocating it anew would cost page faults at every call.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace hamlet::HAMLET_ISA {

template <class T>
class Buffer {
   public:
    Buffer() = default;
    Buffer(Buffer&& other) noexcept : data_(other.data_), size_(other.size_) { other.data_ = nullptr, other.size_ = 0; }
    Buffer& operator=(Buffer&&) = delete;
    ~Buffer() { std::free(data_); }

    // Room for `count` elements, aligned to a cache line; what was there before may be lost.
    T* room(int64_t count) {
        if (count > size_) {
            std::free(data_);
            const int64_t bytes = (count * int64_t(sizeof(T)) + 63) / 64 * 64;
            data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
            size_ = data_ ? count : 0;
            if (!data_) throw std::bad_alloc();
        }
        return data_;
    }

   private:
    T* data_ = nullptr;
    int64_t size_ = 0;
};

// The calling thread's own, kept as long as the thread. Not inlined: the address of what is thread-local would be asked for
// again at every use.
template <class T>
HAMLET_APART T& of_this_thread() {
    static thread_local T kept;
    return kept;
}

}  // namespace hamlet::HAMLET_ISA
