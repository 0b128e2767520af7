#include "memory.h"

#include "execution.h"

namespace hamlet::cuda::host {

namespace {
constexpr size_t UNIT = 2;
}

bool Moment::same_warp(const Moment& other) const {
    return launch == other.launch && block == other.block && thread / WARP == other.thread / WARP;
}

bool Moment::unordered(const Moment& other) const {
    if (launch == 0 || launch != other.launch) return false;
    if (block != other.block) return true;
    if (landing && running().waited.contains(landing)) return false;
    if (thread == other.thread && !several) return false;
    if (barriers != other.barriers) return false;
    return !same_warp(other) || warp_barriers == other.warp_barriers;
}

Memory::Memory(std::string name, const void* base, size_t bytes, bool initialised)
    : name_(std::move(name)), base_(reinterpret_cast<uintptr_t>(base)), bytes_(bytes), initialised_(initialised) {
    forget();
}

void Memory::forget() {
    Unit fresh;
    fresh.initialised = initialised_;
    units_.assign((bytes_ + UNIT - 1) / UNIT, fresh);
}

bool Memory::holds(const void* address, size_t bytes) const {
    const uintptr_t first = reinterpret_cast<uintptr_t>(address);
    return first >= base_ && first - base_ + bytes <= bytes_;
}

std::string Memory::where(const Unit& unit) const {
    return name_ + " at byte " + std::to_string(size_t(&unit - units_.data()) * UNIT);
}

template <class Visit>
void Memory::visit(const void* address, size_t bytes, const char* verb, const Visit& visit) {
    const uintptr_t first = reinterpret_cast<uintptr_t>(address);
    if (!holds(address, bytes))
        fail(verb + std::string(" ") + name_ + " out of bounds, at byte " + std::to_string(int64_t(first - base_)) +
             " of " + std::to_string(bytes_));
    if (first % bytes) fail(verb + std::string(" ") + name_ + " at an address that is no multiple of " +
        std::to_string(bytes));
    for (size_t i = 0; i < bytes; i += UNIT) {
        Unit& unit = units_[(first - base_ + i) / UNIT];
        if (unit.under_way) fail(verb + std::string(" ") + where(unit) + " before the copy to it was waited for");
        visit(unit);
    }
}

void Memory::read(const void* address, size_t bytes) {
    const Moment now = running().moment();
    visit(address, bytes, "reads", [&](Unit& unit) {
        if (!unit.initialised) fail("reads " + where(unit) + ", which no thread has written");
        if (unit.write.unordered(now))
            fail("reads " + where(unit) + ", which thread " + std::to_string(unit.write.thread) + " of block " +
                 std::to_string(unit.write.block) + " wrote without a barrier between");
        // One reader of each of two warps is remembered: enough to find a thread other than a later writer.
        Moment& before = unit.reads[!unit.reads[0].unordered(now) || unit.reads[0].same_warp(now) ? 0 : 1];
        const bool several = before.same_warp(now) && before.unordered(now) && before.thread != now.thread;
        const bool kept = before.several && before.same_warp(now) && before.unordered(now);
        before = now;
        before.several = several || kept;
    });
}

void Memory::check_write(Unit& unit, const char* verb) {
    const Moment now = running().moment();
    for (const Moment& other : {unit.write, unit.reads[0], unit.reads[1]})
        if (other.unordered(now))
            fail(verb + std::string(" ") + where(unit) + ", which thread " + std::to_string(other.thread)
                + " of block " +
                 std::to_string(other.block) + " touched without a barrier between");
    unit.write = now;
    unit.initialised = true;
}

void Memory::write(const void* address, size_t bytes) {
    visit(address, bytes, "writes", [&](Unit& unit) { check_write(unit, "writes"); });
}

void Memory::begin_copy(const void* address, size_t bytes) {
    visit(address, bytes, "copies to", [&](Unit& unit) {
        check_write(unit, "copies to");
        unit.under_way = true;
    });
}

void Memory::check_fences(const Unit& unit) {
    const Moment now = running().moment();
    for (const Moment& other : {unit.write, unit.reads[0], unit.reads[1]})
        if (other.launch == now.launch && other.block == now.block && !other.landing &&
            execution().all[other.thread].fences == other.fences)
            fail("copies a box to " + where(unit) + ", which thread " + std::to_string(other.thread) +
                 " touched without a fence since");
}

void Memory::begin_box(const void* address, size_t bytes) {
    visit(address, bytes, "copies to", [&](Unit& unit) { check_fences(unit); });
    begin_copy(address, bytes);
}

void Memory::end_copy(const void* address, size_t bytes, uint32_t landing) {
    const size_t first = (reinterpret_cast<uintptr_t>(address) - base_) / UNIT;
    for (size_t i = first; i < first + bytes / UNIT; ++i) {
        units_[i].under_way = false;
        units_[i].write = running().moment();
        units_[i].write.landing = landing;
    }
}

}  // namespace hamlet::cuda::host
