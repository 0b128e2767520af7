// One parallel region over independent items, in one phase or several.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <vector>

#include "../view.h"

namespace hamlet::HAMLET_ISA {

// Call `run(phase, item)` for every item below `counts[phase]`, the next free thread taking the next one; a phase begins
// when the one before has ended. An item's result must not depend on who computes it. The first exception is thrown
// again on the caller's thread.
template <class Run>
void parallel_phases(int threads, const std::vector<int64_t>& counts, const Run& run) {
    int64_t most = 0;
    for (int64_t count : counts) most = count > most ? count : most;
    if (threads <= 1 || most <= 1) {
        for (size_t phase = 0; phase < counts.size(); ++phase)
            for (int64_t item = 0; item < counts[phase]; ++item) run(phase, item);
        return;
    }
    std::exception_ptr failure;
#pragma omp parallel num_threads(int(most < threads ? most : threads))
    for (size_t phase = 0; phase < counts.size(); ++phase) {
#pragma omp for schedule(dynamic, 1)
        for (int64_t item = 0; item < counts[phase]; ++item) {
            try {
                run(phase, item);
            } catch (...) {
#pragma omp critical(hamlet_failure)
                failure = std::current_exception();
            }
        }
    }
    if (failure) std::rethrow_exception(failure);
}

template <class Run>
void parallel_for(int threads, int64_t count, const Run& run) {
    parallel_phases(threads, {count}, [&](size_t, int64_t item) { run(item); });
}

// In how many parts each group's rows are cut, so that every thread finds work.
inline int64_t parts_of(int64_t groups, int64_t rows, int64_t wanted) {
    return std::clamp<int64_t>(ceiling(wanted, std::max<int64_t>(groups, 1)), 1, rows);
}

}  // namespace hamlet::HAMLET_ISA
