// Where windows lie: centres of queries on the key grid, boxes of what can be reached, and the ramp.
//
// Positions are float32: whole numbers below 2**24 are exact in it, and distances need it anyway.
#pragma once

#include "products.h"

namespace hamlet::cuda {

constexpr float LOG2_E = 1.4426950408889634f, LOG_2 = 0.6931471805599453f;
// A position that no window reaches; minus it is a radius that reaches nothing.
constexpr float FAR = 1e30f;
// The share of the ramp that boxes cover: at its very end weights round to nothing.
constexpr float SHORT_OF_THE_END = 1 - 1.f / (1 << 20);
// Added to bounds that are computed with more roundings than the distances that they must not miss.
constexpr float SLACK = 1.f / 1024;

HAMLET_DEVICE bool is_finite(float number) { return fabsf(number) < INFINITY; }

// The axis of a pair of grids.
struct Axis {
    int queries, keys;
    float denominator, reciprocal;

    HAMLET_DEVICE Axis(int query_count, int key_count)
        : queries(query_count), keys(key_count), denominator(2 * float(query_count)), reciprocal(1 / denominator) {}

    // Of a query, on the key grid: as good as a division's quotient, exact where float32 has it.
    HAMLET_DEVICE float centre(float query) const {
        const float numerator = (2 * query + 1) * float(keys), quotient = numerator * reciprocal;
        return fmaf(fmaf(-quotient, denominator, numerator), reciprocal, quotient) - 0.5f;
    }
};

// Whole positions from `first` to before `end`.
struct Span {
    int first, end;

    HAMLET_DEVICE int size() const { return end - first; }
    HAMLET_DEVICE bool meets(const Span& other) const { return first < other.end && other.first < end; }
    HAMLET_DEVICE bool holds(const Span& other) const { return first <= other.first && other.end <= end; }
};

struct Box {
    Span y, x;

    HAMLET_DEVICE bool meets(const Box& other) const { return y.meets(other.y) && x.meets(other.x); }
    HAMLET_DEVICE bool holds(const Box& other) const { return y.holds(other.y) && x.holds(other.x); }
};

// The whole positions of an axis from `first` to `last`, both included.
HAMLET_DEVICE Span covered(float first, float last, int size) {
    const float begin = fminf(fmaxf(ceilf(first), 0), float(size));
    return {int(begin), int(fmaxf(fminf(floorf(last) + 1, float(size)), begin))};
}

// A box taken COUNT pixels a step, in whichever shape needs the fewest steps.
template <int COUNT>
struct Steps {
    Box box;
    int shift = 0, across = 0, number = 0;  // a step is COUNT >> shift rows of 1 << shift pixels

    HAMLET_DEVICE explicit Steps(const Box& whole) : box(whole) {
        HAMLET_ROLLED
        for (int candidate = 0; COUNT >> candidate; ++candidate) {
            const int columns = (box.x.size() + (1 << candidate) - 1) >> candidate;
            const int rows = (box.y.size() + (COUNT >> candidate) - 1) / (COUNT >> candidate);
            if (candidate && rows * columns > number) continue;
            shift = candidate, across = columns, number = rows * columns;
        }
    }

    // What a step covers; of it, what is beyond the box is not there.
    HAMLET_DEVICE Box region(int step) const {
        const int rows = COUNT >> shift;
        const int top = box.y.first + step / across * rows, left = box.x.first + (step % across << shift);
        return {{top, top + rows}, {left, left + (1 << shift)}};
    }
};

// Of every lane of the warp, the largest of each number.
template <int COUNT>
HAMLET_DEVICE void largest_of_warp(float (&numbers)[COUNT]) {
    HAMLET_ROLLED
    for (int lanes = WARP / 2; lanes; lanes /= 2)
        HAMLET_UNROLL
        for (int i = 0; i < COUNT; ++i) numbers[i] = fmaxf(numbers[i], shuffle_xor(numbers[i], lanes));
}

// Of every warp of the block; `scratch` holds COUNT floats a warp.
template <int COUNT>
HAMLET_DEVICE void largest_of_block(float (&numbers)[COUNT], Shared<float> scratch) {
    const int warp = thread_index() / WARP;
    if (lane_index() == 0)
        HAMLET_UNROLL
        for (int i = 0; i < COUNT; ++i) scratch.store(warp * COUNT + i, numbers[i]);
    synchronise();
    HAMLET_UNROLL
    for (int i = 0; i < COUNT; ++i)
        for (int other = 0; other < block_size() / WARP; ++other)
            numbers[i] = fmaxf(numbers[i], scratch.load(other * COUNT + i));
    synchronise();
}

// Radius less distance; the radius comes off last, so that a key at exactly the radius gives 0.
HAMLET_DEVICE float margin_of(float radius, float centre_y, float centre_x, float key_y, float key_x) {
    return radius - fmaxf(fabsf(centre_y - key_y), fabsf(centre_x - key_x));
}

HAMLET_DEVICE float ramp(float margin, float slope) { return fminf(fmaxf(1 + margin * slope, 0), 1); }

}  // namespace hamlet::cuda
