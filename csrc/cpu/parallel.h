// One parallel region over independent items.
#pragma once

#include <cstdint>
#include <exception>

namespace hamlet::HAMLET_ISA {

// Call `run(item)` for every item below `count`, the next free thread taking the next one. An item's result must not
// depend on who computes it. The first exception is thrown again on the caller's thread.
template <class Run>
void parallel_for(int threads, int64_t count, const Run& run) {
    if (threads <= 1 || count <= 1) {
        for (int64_t item = 0; item < count; ++item) run(item);
        return;
    }
    std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic, 1) num_threads(int(count < threads ? count : threads))
    for (int64_t item = 0; item < count; ++item) {
        try {
            run(item);
        } catch (...) {
#pragma omp critical(hamlet_failure)
            failure = std::current_exception();
        }
    }
    if (failure) std::rethrow_exception(failure);
}

}  // namespace hamlet::HAMLET_ISA
