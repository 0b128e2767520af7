// A tensor as the kernels see it: nothing of torch, only where its elements are.
#pragma once

#include <cstdint>

namespace hamlet {

// Of numbers with a fraction. Extents and dilations are int64, whatever their views say.
enum class DType : int { float32, float64, bfloat16, float16 };

constexpr int MAX_DIMENSIONS = 5;

struct View {
    char* data = nullptr;  // null: the optional tensor is absent
    DType dtype = DType::float32;
    int64_t size[MAX_DIMENSIONS] = {};
    int64_t stride[MAX_DIMENSIONS] = {};  // in elements, 0 where broadcast

    explicit operator bool() const { return data != nullptr; }
};

inline int element_size(DType dtype) {
    switch (dtype) {
        case DType::float64: return 8;
        case DType::float32: return 4;
        default: return 2;
    }
}

inline int64_t ceiling(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace hamlet
