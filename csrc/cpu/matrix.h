// The processor's matrix unit (Intel AMX): registers of 16 rows of 64 bytes, whose products of bfloat16 are added up in
// float32. Every thread says first how large its registers are, and that it has done with them at the end.
#pragma once

#include <cstdint>

#include "simd.h"

namespace hamlet::HAMLET_ISA::matrix {

constexpr int ROWS = 16, ROW_BYTES = 64;

// Which register holds what: sums of 16 x 16; the left factor, 16 rows of 32 elements; the right factor, 16 rows of pairs
// of elements that follow each other in a column of 16; and factors with half as many products to a sum.
enum Register { SUM, OTHER_SUM, LEFT, RIGHT, SHORT_LEFT, SHORT_RIGHT, COUNT };

class InUse {
   public:
    InUse() {
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {};
            uint8_t rows[16] = {};
        } shapes;
        for (int i = 0; i < COUNT; ++i) {
            shapes.row_bytes[i] = i == SHORT_LEFT ? ROW_BYTES / 2 : ROW_BYTES;
            shapes.rows[i] = i == SHORT_RIGHT ? ROWS / 2 : ROWS;
        }
        asm volatile("ldtilecfg %0" ::"m"(shapes));
    }
    ~InUse() { asm volatile("tilerelease"); }
    InUse(const InUse&) = delete;
};

// GCC's own intrinsics of loads do not say that they read memory.
template <Register TO>
HAMLET_INLINE void load(const void* from, int64_t pitch = ROW_BYTES) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(pitch), "i"(TO) : "memory");
}

template <Register FROM>
HAMLET_INLINE void store(void* to, int64_t pitch = ROW_BYTES) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(pitch), "i"(FROM) : "memory");
}

template <Register TO>
HAMLET_INLINE void clear() {
    asm volatile("tilezero %%tmm%c0" ::"i"(TO));
}

template <Register TO, Register LEFT_FACTOR, Register RIGHT_FACTOR>
HAMLET_INLINE void multiply_add() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(TO), "i"(LEFT_FACTOR), "i"(RIGHT_FACTOR));
}

}  // namespace hamlet::HAMLET_ISA::matrix
