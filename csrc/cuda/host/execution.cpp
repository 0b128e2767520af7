#include "execution.h"

#include <cstring>
#include <stdexcept>

namespace hamlet::cuda::host {

namespace {

constexpr size_t STACK = 256 * 1024;
constexpr size_t ALIGNMENT = 128;

thread_local std::unique_ptr<Execution> current;
thread_local Thread* running_thread = nullptr;
thread_local const std::function<void()>* running_body = nullptr;
thread_local std::vector<std::unique_ptr<char[]>> stacks;
thread_local std::vector<std::unique_ptr<Memory>> globals;
thread_local uint32_t launches = 0;

void enter() {
    Thread& thread = *running_thread;
    try {
        (*running_body)();
        if (!thread.open.empty() || !thread.groups.empty()) fail("ends before its copies were waited for");
    } catch (...) {
        thread.error = std::current_exception();
    }
    thread.state = Thread::State::finished;
}

std::string told(const Site& site) { return std::string(site.file_name()) + ":" + std::to_string(site.line()); }

bool same(const Site& a, const Site& b) {
    return a.line() == b.line() && a.column() == b.column() && !std::strcmp(a.file_name(), b.file_name());
}

[[noreturn]] void fail_divergent(const Thread& one, const Thread& other) {
    auto where = [](const Thread& thread) {
        const bool finished = thread.state == Thread::State::finished;
        return "thread " + std::to_string(thread.index) + (finished ? " has finished" : " waits at " +
            told(thread.site));
    };
    fail("diverges at a barrier: " + where(one) + ", " + where(other));
}

// Lets the threads [first, first + count) go on if all of them wait for each other.
bool release(Execution& run, int first, int count, Thread::State state) {
    for (int i = first; i < first + count; ++i)
        if (run.all[i].state != state) return false;
    for (int i = first; i < first + count; ++i) {
        if (!same(run.all[i].site, run.all[first].site)) fail_divergent(run.all[first], run.all[i]);
        run.all[i].state = Thread::State::ready;
        if (state == Thread::State::at_barrier) ++run.all[i].barriers;
    }
    return true;
}

void land_copy(const Copy& copy, uint32_t landing) {
    copy.memory->end_copy(copy.to, copy.bytes, landing);
    if (copy.from) std::memcpy(copy.to, copy.from, copy.bytes);
    else std::memset(copy.to, 0, copy.bytes);
}

void resume(Execution& run, Thread& thread) {
    running_thread = &thread;
    swapcontext(&run.scheduler, &thread.context);
    if (thread.error) std::rethrow_exception(thread.error);
}

void run_block(Execution& run) {
    for (Thread& thread : run.all) {
        const int index = int(&thread - run.all.data());
        thread = Thread();
        thread.index = index;
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = stacks[index].get();
        thread.context.uc_stack.ss_size = STACK;
        thread.context.uc_link = &run.scheduler;
        makecontext(&thread.context, enter, 0);
    }
    for (bool going = true; going;) {
        going = false;
        for (Thread& thread : run.all)
            if (thread.state == Thread::State::ready) {
                resume(run, thread);
                going = true;
            }
        for (int warp = 0; warp < run.threads / WARP; ++warp)
            going |= release(run, warp * WARP, WARP, Thread::State::in_warp);
        going |= release(run, 0, run.threads, Thread::State::at_barrier);
        for (Thread& thread : run.all)
            if (thread.state == Thread::State::at_copy && thread.awaited->can_pass(thread.turn)) {
                thread.state = Thread::State::ready;
                going = true;
            }
    }
    for (Thread& thread : run.all)
        if (thread.state != Thread::State::finished) {
            running_thread = &thread;
            if (thread.state == Thread::State::at_copy)
                fail("waits at " + told(thread.site) + " for a box that no thread copies");
            for (const Thread& other : run.all)
                if (other.state != thread.state || !same(other.site, thread.site)) fail_divergent(thread, other);
        }
    for (const auto& [address, arrival] : run.arrivals)
        if (!arrival.under_way.empty()) fail("ends before a box was waited for");
}

}  // namespace

Moment Thread::moment() const {
    return {current->launch, uint32_t(current->block), uint32_t(index), barriers, warp_barriers, fences};
}

void Thread::wait(State until, Site where) {
    state = until;
    site = where;
    swapcontext(&context, &current->scheduler);
}

void Arrival::land() {
    landing = ++current->landings;
    for (const Copy& copy : under_way) land_copy(copy, landing);
    under_way.clear();
    ++turns;
}

void Thread::land(size_t pending) {
    for (; groups.size() > pending; groups.pop_front())
        for (const Copy& copy : groups.front()) land_copy(copy, 0);
}

void run(const std::string& kernel, int64_t blocks, int threads, int shared_bytes, const std::function<void()>& body) {
    if (threads % WARP) throw std::runtime_error(kernel + ": a block of " + std::to_string(threads) + " threads");
    current = std::make_unique<Execution>();
    Execution& run = *current;
    run.kernel = kernel;
    run.launch = ++launches;
    run.threads = threads;
    run.all.resize(threads);
    run.warps.resize(threads / WARP);
    while (int(stacks.size()) < threads) stacks.push_back(std::make_unique<char[]>(STACK));
    run.shared_bytes = std::make_unique<char[]>(shared_bytes + ALIGNMENT);
    run.shared_base = run.shared_bytes.get();
    run.shared_base += ALIGNMENT - reinterpret_cast<uintptr_t>(run.shared_base) % ALIGNMENT;
    run.shared = std::make_unique<Memory>("shared memory", run.shared_base, shared_bytes, false);
    running_body = &body;
    for (run.block = 0; run.block < blocks; ++run.block) {
        run.shared->forget();
        run.arrivals.clear();
        run_block(run);
    }
}

Execution& execution() { return *current; }
Thread& running() { return *running_thread; }

void fail(const std::string& what) {
    throw std::runtime_error(current->kernel + ", block " + std::to_string(current->block) + ", thread " +
                             std::to_string(running_thread->index) + ": " + what);
}

const char (*exchange(const void* value, size_t bytes, Site site))[LARGEST_OPERAND] {
    Thread& thread = running();
    auto* set = execution().warps[thread.index / WARP].of_lane[thread.exchanges++ % 2];
    std::memcpy(set[thread.index % WARP], value, bytes);
    thread.wait(Thread::State::in_warp, site);
    return set;
}

Memory* register_global(const void* base, size_t bytes) {
    for (const auto& known : globals)
        if (known->holds(base, bytes)) return known.get();
    globals.push_back(std::make_unique<Memory>("global memory", base, bytes, true));
    return globals.back().get();
}

void forget_globals() { globals.clear(); }

}  // namespace hamlet::cuda::host
