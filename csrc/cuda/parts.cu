#include "parts.h"

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

void sum_parts(const Call& call, const Convolution& given, int segments) {
    const int64_t* size = given.weight.size;
    const int64_t planes = size[0] * size[1], weights = planes * size[2] * size[3] * size[4];
    with_type(given.weight.dtype, [&](auto zero) {
        using T = decltype(zero);
        const Parts<T> p{global<float>(given.parts), global<T>(given.d_weight), global<T>(given.d_bias), weights,
                         planes, segments};
        call.launch("sum of parts", sum_of_parts<T>, ceiling(weights + planes, SUM_THREADS), SUM_THREADS, 0, p);
    });
}

}  // namespace hamlet::cuda
