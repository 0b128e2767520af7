#include "isa.h"

#include <atomic>
#include <stdexcept>

#if defined(__x86_64__)
#define HAMLET_FOR_EACH_ISA(apply) apply(baseline) apply(avx2) apply(avx512)
#else
#define HAMLET_FOR_EACH_ISA(apply) apply(baseline)
#endif

namespace hamlet {

#define HAMLET_DECLARE(isa) \
    namespace isa {         \
    extern const Kernels table; \
    }
HAMLET_FOR_EACH_ISA(HAMLET_DECLARE)
#undef HAMLET_DECLARE

namespace {

bool has(const std::string& name) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (name == "avx2") return avx2;
    if (name == "avx512")
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    return name == "baseline";
}

const std::vector<const Kernels*>& usable() {
    static const std::vector<const Kernels*> tables = [] {
        std::vector<const Kernels*> found;
#define HAMLET_ADD(isa) \
    if (has(#isa)) found.push_back(&isa::table);
        HAMLET_FOR_EACH_ISA(HAMLET_ADD)
#undef HAMLET_ADD
        return found;
    }();
    return tables;
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const Kernels* table : usable()) names.push_back(table->name);
    return names;
}

const Kernels& kernels() {
    const Kernels* table = chosen.load(std::memory_order_relaxed);
    return table ? *table : *usable().back();
}

void use_instruction_set(const std::string& name) {
    for (const Kernels* table : usable())
        if (table->name == name) {
            chosen.store(table, std::memory_order_relaxed);
            return;
        }
    throw std::invalid_argument("the native kernels have no instruction set " + name + " that this processor has");
}

}  // namespace hamlet
