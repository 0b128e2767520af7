// The matrix units as the device has them.
#pragma once

namespace hamlet::cuda {

// sums (16 x 8) += left (16 x K) right (K x 8): K is 16, and 8 for float, whose elements must be tf32().
template <class T>
HAMLET_DEVICE void mma(float (&sums)[4], const uint32_t (&left)[4], const uint32_t (&right)[2]) {
    if constexpr (std::is_same_v<T, Float16>)
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
            : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
    else if constexpr (std::is_same_v<T, BFloat16>)
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
            : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
    else
        asm volatile(
            "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
            : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
}

HAMLET_DEVICE uint32_t tf32(float number) {
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(number));
    return bits;
}

// Four matrices of 8 x 8 elements of two bytes: lane l names where row l % 8 of matrix l / 8 begins. Of each matrix a
// lane gets two neighbours of row l / 4, or, TRANSPOSED, of column l / 4.
template <bool TRANSPOSED, class T>
HAMLET_DEVICE void load_matrices(uint32_t (&into)[4], Shared<T> from, int row) {
    const unsigned address = unsigned(__cvta_generic_to_shared(from.at + row));
    if constexpr (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(into[0]), "=r"(into[1]), "=r"(into[2]), "=r"(into[3])
                     : "r"(address)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(into[0]), "=r"(into[1]), "=r"(into[2]), "=r"(into[3])
                     : "r"(address)
                     : "memory");
}

}  // namespace hamlet::cuda
