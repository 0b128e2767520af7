// The bulk copy engine as the device has it.
#pragma once

#include <cuda.h>

namespace hamlet::cuda {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define HAMLET_BULK_COPIES true
#else
#define HAMLET_BULK_COPIES false
#endif

struct TensorMap {
    CUtensorMap map;
};

// Counts the bytes of boxes on their way to a stage.
using CopyBarrier = Shared<uint64_t>;

HAMLET_DEVICE unsigned shared_address(const void* at) { return unsigned(__cvta_generic_to_shared(at)); }

// By one thread, before a barrier of the block.
HAMLET_DEVICE void initialise(CopyBarrier barrier) {
#if HAMLET_BULK_COPIES
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier.at)) : "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Before the barrier of the block after which a box may take the place of what this thread read or wrote.
HAMLET_DEVICE void leave_to_engine() {
#if HAMLET_BULK_COPIES
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// By one thread: the box of `bytes` bytes whose first element is at `corner`, innermost first.
template <class T>
HAMLET_DEVICE void copy_box(Shared<T> to, const TensorMap& from, const int (&corner)[RANK], CopyBarrier barrier,
                            int bytes) {
#if HAMLET_BULK_COPIES
    const unsigned counter = shared_address(barrier.at);
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(counter), "r"(bytes) : "memory");
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3, %4, %5, %6}], [%7];" ::"r"(shared_address(to.at)), "l"(&from.map), "r"(corner[0]),
        "r"(corner[1]), "r"(corner[2]), "r"(corner[3]), "r"(corner[4]), "r"(counter)
        : "memory");
#endif
}

// Until the box of the barrier's first, third, ... (`turn` even) or second, ... copy has landed.
HAMLET_DEVICE void wait_for_box(CopyBarrier barrier, int turn) {
#if HAMLET_BULK_COPIES
    asm volatile(
        "{\n"
        ".reg .pred landed;\n"
        "WAIT:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 landed, [%0], %1;\n"
        "@landed bra LANDED;\n"
        "bra WAIT;\n"
        "LANDED:\n"
        "}" ::"r"(shared_address(barrier.at)), "r"(turn & 1)
        : "memory");
#endif
}

// The driver's, without linking its library, which machines that only build do not have.
inline auto driver_encode() {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult status;
#if CUDART_VERSION >= 12050
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &status),
#else
    check(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &status),
#endif
          "cuTensorMapEncodeTiled");
    if (!found) throw std::runtime_error("the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
}

template <class T>
TensorMap tensor_map(Global<T> tensor, const Boxes& boxes) {
    static const auto encode = driver_encode();
    const EncodedBoxes asked = encoded(boxes, sizeof(T));
    TensorMap result;
    const auto type = sizeof(T) == 2 ? CU_TENSOR_MAP_DATA_TYPE_UINT16 : CU_TENSOR_MAP_DATA_TYPE_UINT32;
    const CUresult status = encode(&result.map, type, RANK, tensor.at, asked.size, asked.stride, asked.box,
                                   asked.apart, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE,
                                   CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (status != CUDA_SUCCESS)
        throw std::runtime_error("cuTensorMapEncodeTiled: error " + std::to_string(int(status)));
    return result;
}

}  // namespace hamlet::cuda
