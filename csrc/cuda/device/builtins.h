// The built-ins as the device has them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "../../view.h"
#include "../pack.h"

#define HAMLET_DEVICE __device__ __forceinline__
#define HAMLET_BOTH __host__ __device__ __forceinline__
// Two blocks on a multiprocessor at least: left to itself, nvcc spills registers to have room for one more.
#define HAMLET_KERNEL(threads) __global__ void __launch_bounds__(threads, 2)
#define HAMLET_PARAMETERS const __grid_constant__
#define HAMLET_UNROLL _Pragma("unroll")
#define HAMLET_TEXT(words) #words
#define HAMLET_UNROLL_BY(count) _Pragma(HAMLET_TEXT(unroll (count)))
#define HAMLET_ROLLED _Pragma("unroll 1")

namespace hamlet::cuda {

constexpr const char* DEVICE_TYPE = "cuda";

HAMLET_DEVICE int thread_index() { return int(threadIdx.x); }
HAMLET_DEVICE int block_index() { return int(blockIdx.x); }
HAMLET_DEVICE int block_size() { return int(blockDim.x); }
HAMLET_DEVICE void synchronise() { __syncthreads(); }
HAMLET_DEVICE void synchronise_warp() { __syncwarp(); }

template <class T>
HAMLET_DEVICE T shuffle_xor(T value, int lanes) {
    return __shfl_xor_sync(0xffffffffu, value, lanes);
}

template <class T>
HAMLET_DEVICE T shuffle(T value, int lane) {
    return __shfl_sync(0xffffffffu, value, lane);
}

HAMLET_DEVICE bool any_of_warp(bool value) { return __any_sync(0xffffffffu, value); }

// 2 to the power of `exponent`, results too small for a normal number being 0.
HAMLET_DEVICE float exp2_approximate(float exponent) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(exponent));
    return result;
}

template <class T>
struct Global {
    T* at = nullptr;

    HAMLET_DEVICE explicit operator bool() const { return at != nullptr; }
    HAMLET_DEVICE T load(int64_t i) const { return at[i]; }
    HAMLET_DEVICE void store(int64_t i, T value) const { at[i] = value; }
    template <int COUNT>
    HAMLET_DEVICE Pack<T, COUNT> load_pack(int64_t i) const {
        return *reinterpret_cast<const Pack<T, COUNT>*>(at + i);
    }
    template <int COUNT>
    HAMLET_DEVICE void store_pack(int64_t i, Pack<T, COUNT> values) const {
        *reinterpret_cast<Pack<T, COUNT>*>(at + i) = values;
    }
    // How many elements the first lies past a multiple of what an asynchronous copy moves.
    HAMLET_DEVICE int misalignment() const {
        return int(reinterpret_cast<uintptr_t>(at) % COPY_BYTES / sizeof(T));
    }
};

template <class T>
struct Shared {
    T* at = nullptr;

    HAMLET_DEVICE Shared operator+(int i) const { return {at + i}; }
    HAMLET_DEVICE T load(int i) const { return at[i]; }
    HAMLET_DEVICE void store(int i, T value) const { at[i] = value; }
    template <int COUNT>
    HAMLET_DEVICE Pack<T, COUNT> load_pack(int i) const {
        return *reinterpret_cast<const Pack<T, COUNT>*>(at + i);
    }
    template <int COUNT>
    HAMLET_DEVICE void store_pack(int i, Pack<T, COUNT> values) const {
        *reinterpret_cast<Pack<T, COUNT>*>(at + i) = values;
    }
    // The same bytes from byte `offset` on as elements of another type.
    template <class U>
    HAMLET_DEVICE Shared<U> as(int offset) const {
        return {reinterpret_cast<U*>(reinterpret_cast<char*>(at) + offset)};
    }
};

HAMLET_DEVICE Shared<char> shared_memory() {
    extern __shared__ __align__(128) char memory[];
    return {memory};
}

// Copies COPY_BYTES, or writes zeros where the source does not exist; done when its group has been waited for.
template <class T>
HAMLET_DEVICE void copy_async(Shared<T> to, int i, Global<T> from, int64_t j, bool exists) {
    const unsigned target = unsigned(__cvta_generic_to_shared(to.at + i));
    const T* source = from.at + (exists ? j : 0);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(exists ? 16 : 0)
                 : "memory");
}

HAMLET_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until all of this thread's groups but the last PENDING have landed.
template <int PENDING>
HAMLET_DEVICE void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

inline void check(cudaError_t status, const std::string& what) {
    if (status != cudaSuccess)
        throw std::runtime_error(what + ": " + cudaGetErrorName(status) + ": " + cudaGetErrorString(status));
}

template <class T>
Global<T> global(const View& view) {
    return {reinterpret_cast<T*>(view.data)};
}

inline DeviceLimits limits_of_device(int device) {
    DeviceLimits limits;
    check(cudaDeviceGetAttribute(&limits.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
          "the shared memory limit");
    check(cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device), "multiprocessors");
    int major = 0;
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "the compute capability");
    limits.bulk_copies = major >= 9;
    return limits;
}

// Where one call's kernels run.
class Call {
   public:
    Call(int device, uintptr_t stream) : stream_(reinterpret_cast<cudaStream_t>(stream)) {
        // This module's runtime has a current device of its own.
        check(cudaSetDevice(device), "cudaSetDevice");
    }

    template <class Parameters>
    void launch(const char* name, void (*kernel)(Parameters), int64_t blocks, int threads, int shared_bytes,
                const Parameters& parameters) const {
        constexpr int WITHOUT_ASKING = 48 * 1024;
        if (shared_bytes > WITHOUT_ASKING)
            check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), name);
        kernel<<<unsigned(blocks), unsigned(threads), unsigned(shared_bytes), stream_>>>(parameters);
        check(cudaGetLastError(), name);
    }

   private:
    cudaStream_t stream_;
};

}  // namespace hamlet::cuda
