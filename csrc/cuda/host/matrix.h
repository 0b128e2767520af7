// The matrix units as the checked execution on the CPU has them: plain arithmetic on what the lanes hold.
#pragma once

namespace hamlet::cuda {

namespace host {

// Where an operand's element lies: the lane that holds it, and its place among that lane's elements.
struct Place {
    int lane, element;
};

template <class T>
Place place_in_left(int row, int inner) {
    if constexpr (sizeof(T) == 4) return {row % 8 * 4 + inner % 4, row / 8 + inner / 4 * 2};
    else return {row % 8 * 4 + inner % 8 / 2, inner % 2 + row / 8 * 2 + inner / 8 * 4};
}

template <class T>
Place place_in_right(int inner, int column) {
    if constexpr (sizeof(T) == 4) return {column * 4 + inner % 4, inner / 4};
    else return {column * 4 + inner % 8 / 2, inner % 2 + inner / 8 * 2};
}

template <class T>
float element_at(const char* lane, size_t offset, int element) {
    T found;
    std::memcpy(&found, lane + offset + element * sizeof(T), sizeof(T));
    return number(found);
}

}  // namespace host

template <class T>
void mma(float (&sums)[4], const uint32_t (&left)[4], const uint32_t (&right)[2],
         host::Site site = host::Site::current()) {
    constexpr int DEPTH = 32 / int(sizeof(T));
    uint32_t own[6];
    std::memcpy(own, left, sizeof left);
    std::memcpy(own + 4, right, sizeof right);
    const auto* of_lane = host::exchange(own, sizeof own, site);
    for (int i = 0; i < 4; ++i) {
        const int row = thread_index() % WARP / 4 + i / 2 * 8, column = thread_index() % 4 * 2 + i % 2;
        for (int k = 0; k < DEPTH; ++k) {
            const host::Place a = host::place_in_left<T>(row, k), b = host::place_in_right<T>(k, column);
            sums[i] += host::element_at<T>(of_lane[a.lane], 0, a.element) *
                       host::element_at<T>(of_lane[b.lane], sizeof left, b.element);
        }
    }
}

inline uint32_t tf32(float number) {
    uint32_t bits;
    std::memcpy(&bits, &number, 4);
    // To nearest, ties away from zero; what has no finite neighbour stays.
    if ((bits & 0x7f800000) != 0x7f800000) bits += 0x1000;
    return bits & 0xffffe000;
}

template <bool TRANSPOSED, class T>
void load_matrices(uint32_t (&into)[4], Shared<T> from, int row, host::Site site = host::Site::current()) {
    const auto own = from.template load_pack<8>(row);
    const auto* of_lane = host::exchange(&own, sizeof own, site);
    const int line = thread_index() % WARP / 4, first = thread_index() % 4 * 2;
    for (int matrix = 0; matrix < 4; ++matrix) {
        T pair[2];
        for (int e = 0; e < 2; ++e) {
            const int of_row = TRANSPOSED ? first + e : line, column = TRANSPOSED ? line : first + e;
            std::memcpy(&pair[e], of_lane[matrix * 8 + of_row] + column * sizeof(T), sizeof(T));
        }
        std::memcpy(&into[matrix], pair, sizeof pair);
    }
}

}  // namespace hamlet::cuda
