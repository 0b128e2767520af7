// Memory as the checker sees it: who touched what, and when. All elements have at least two bytes, so that is the unit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace hamlet::cuda::host {

// One thread at one time. Two of them are ordered where a barrier lies between.
struct Moment {
    uint32_t launch = 0;  // 0: never
    uint32_t block = 0, thread = 0;
    uint32_t barriers = 0, warp_barriers = 0, fences = 0;  // that the thread has passed
    bool several = false;  // other threads of its warp did the same between the same barriers
    uint32_t landing = 0;  // not 0: of a box, which threads that waited for it may touch

    bool same_warp(const Moment& other) const;
    bool unordered(const Moment& other) const;
};

class Memory {
   public:
    Memory(std::string name, const void* base, size_t bytes, bool initialised);

    // Each throws where the running thread must not do that.
    void read(const void* address, size_t bytes);
    void write(const void* address, size_t bytes);
    void begin_copy(const void* address, size_t bytes);
    void begin_box(const void* address, size_t bytes);
    void end_copy(const void* address, size_t bytes, uint32_t landing);  // of a box, or 0

    void forget();  // contents and history
    bool holds(const void* address, size_t bytes) const;

   private:
    struct Unit {
        Moment write, reads[2];
        bool initialised = false, under_way = false;
    };

    std::string where(const Unit& unit) const;
    template <class Visit>
    void visit(const void* address, size_t bytes, const char* verb, const Visit& visit);
    void check_write(Unit& unit, const char* verb);
    void check_fences(const Unit& unit);

    std::string name_;
    uintptr_t base_;
    size_t bytes_;
    bool initialised_;
    std::vector<Unit> units_;
};

}  // namespace hamlet::cuda::host
