// A kernel's grid run on the CPU: block after block, each CUDA thread a fibre that goes on until it must wait.
#pragma once

#include <ucontext.h>

#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <set>
#include <source_location>
#include <string>
#include <unordered_map>
#include <vector>

#include "../pack.h"
#include "memory.h"

namespace hamlet::cuda::host {

using Site = std::source_location;

struct Copy {
    char* to;
    const char* from;  // null: zeros
    Memory* memory;    // of `to`
    size_t bytes = COPY_BYTES;
};

// What a barrier of boxes knows: the box under way, if any, and how many have landed.
struct Arrival {
    std::vector<Copy> under_way;
    uint32_t turns = 0;
    uint32_t landing = 0;  // of the last that landed

    bool can_pass(int turn) const { return turns % 2 != uint32_t(turn & 1) || !under_way.empty(); }
    void land();
};

class Thread {
   public:
    enum class State { ready, at_barrier, in_warp, at_copy, finished };

    Moment moment() const;
    void wait(State state, Site site);
    void commit() { groups.push_back(std::move(open)), open.clear(); }
    void land(size_t pending);

    int index = 0;
    State state = State::ready;
    Site site;
    uint32_t barriers = 0, warp_barriers = 0, exchanges = 0;
    std::vector<Copy> open;               // asynchronous copies that no group has yet
    std::deque<std::vector<Copy>> groups;
    const Arrival* awaited = nullptr;     // where it is at_copy, and which of its turns
    int turn = 0;
    std::set<uint32_t> waited;            // landings of boxes
    uint32_t fences = 0;                  // between its accesses and the copy engine's
    ucontext_t context;
    std::exception_ptr error;
};

constexpr size_t LARGEST_OPERAND = 64;

// What the lanes of a warp give each other. Two sets, so that a fast lane does not overwrite what a slow one must read.
struct Exchange {
    alignas(16) char of_lane[2][WARP][LARGEST_OPERAND];
};

struct Execution {
    std::string kernel;
    uint32_t launch = 0;
    int block = 0, threads = 0;
    std::vector<Thread> all;
    std::vector<Exchange> warps;
    std::unordered_map<const void*, Arrival> arrivals;  // by the barrier's address
    uint32_t landings = 0;
    std::unique_ptr<char[]> shared_bytes;
    char* shared_base = nullptr;
    std::unique_ptr<Memory> shared;
    ucontext_t scheduler;
};

// Runs every block of a grid; throws std::runtime_error at the first thing that a kernel must not do.
void run(const std::string& kernel, int64_t blocks, int threads, int shared_bytes, const std::function<void()>& body);

Execution& execution();
Thread& running();
[[noreturn]] void fail(const std::string& what);

// Gives `value` to the other lanes of the running thread's warp, waits for theirs and returns all of them.
const char (*exchange(const void* value, size_t bytes, Site site))[LARGEST_OPERAND];

// The tensors of the call that is being made on this thread of the CPU.
Memory* register_global(const void* base, size_t bytes);
void forget_globals();

}  // namespace hamlet::cuda::host
