// Multiply-adds and nothing else: how many of them the processor does is what the kernels are measured against.
#include <numeric>
#include <vector>

#include "kernels.h"
#include "parallel.h"
#include "simd.h"

namespace hamlet::HAMLET_ISA {

namespace {

// Few enough that the sums stay exact in single precision.
constexpr int64_t STEPS = 1 << 14;
// As many independent sums as there are registers for, so that none waits for another.
constexpr int SUMS = VECTOR_REGISTERS - 4;

// So that the compiler does not know that it multiplies by one.
volatile const float ONE = 1;

// Every lane counts its own operations, so that the compiler cannot do without any of them.
double count_operations() {
    const Vector<float> one = broadcast<float>(ONE), two = broadcast<float>(2);
    Vector<float> sums[SUMS];
    // Equal sums would be computed once.
    for (int i = 0; i < SUMS; ++i) sums[i] = broadcast<float>(float(i));
    for (int64_t step = 0; step < STEPS; ++step)
#pragma GCC unroll 32
        for (Vector<float>& sum : sums) sum = sum * one + two;
    double operations = 0;
    for (int i = 0; i < SUMS; ++i)
        for (int lane = 0; lane < LANES<float>; ++lane) operations += sums[i][lane] - float(i);
    return operations;
}

}  // namespace

double multiply_adds(int threads, int64_t items) {
    std::vector<double> operations(items);
    parallel_for(threads, items, [&](int64_t item) { operations[item] = count_operations(); });
    return std::accumulate(operations.begin(), operations.end(), 0.0);
}

}  // namespace hamlet::HAMLET_ISA
