// The second stage of a reduction: the parts that blocks left, summed in one order, so that no atomics are needed.
#pragma once

#include "number.h"

namespace hamlet::cuda {

template <class T>
struct Parts {
    Global<float> parts;      // (segments, weights + biases)
    Global<T> weight, bias;   // bias may be absent
    int64_t weights = 0, biases = 0;
    int segments = 0;
};

constexpr int SUM_THREADS = 128;

template <class T>
HAMLET_KERNEL(SUM_THREADS)
sum_of_parts(HAMLET_PARAMETERS Parts<T> p) {
    const int64_t i = int64_t(block_index()) * SUM_THREADS + thread_index(), count = p.weights + p.biases;
    if (i >= count) return;
    float sum = 0;
    for (int segment = 0; segment < p.segments; ++segment) sum += p.parts.load(segment * count + i);
    if (i < p.weights) p.weight.store(i, stored<T>(sum));
    else if (p.bias) p.bias.store(i - p.weights, stored<T>(sum));
}

template <class T>
void launch_sum_of_parts(const Call& call, const Parts<T>& p) {
    call.launch("sum of parts", sum_of_parts<T>, ceiling(p.weights + p.biases, SUM_THREADS), SUM_THREADS, 0, p);
}

}  // namespace hamlet::cuda
