// How a library lends its tensors to C: that part of DLPack's interface which is used here, of version 1.3 and later
// (https://dmlc.github.io/dlpack/latest/c_api.html). The names in the comments are the standard's.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hamlet::dlpack {

// DLDataTypeCode
enum : uint8_t { INTEGER = 0, FLOAT = 2, BFLOAT = 4 };

// DLTensor, with DLDevice and DLDataType in their places
struct Tensor {
    char* data;
    int32_t device_type, device;
    int32_t dimensions;
    uint8_t code, bits;
    uint16_t lanes;
    const int64_t* size;
    const int64_t* stride;  // in elements
    uint64_t byte_offset;
};

// DLPackExchangeAPI, which a tensor's Python type has as the capsule `__dlpack_c_exchange_api__`
struct Exchange {
    uint32_t major, minor;
    const Exchange* older;  // prev_api: one of an earlier major version, or null
    void (*managed[3])();   // managed_tensor_allocator, ..._from_py_object_no_sync, ..._to_py_object_no_sync
    // dltensor_from_py_object_no_sync. The memory stays the object's. Not 0: failed, with a Python exception.
    int (*tensor_of)(void* object, Tensor* tensor);
    void (*work_stream)();  // current_work_stream
};

static_assert(sizeof(void*) != 8 || (sizeof(Tensor) == 48 && offsetof(Exchange, tensor_of) == 40));

constexpr uint32_t MAJOR = 1;
constexpr char CAPSULE[] = "dlpack_exchange_api";

}  // namespace hamlet::dlpack
