#include "isa.h"

#include <atomic>
#include <stdexcept>

#if defined(HAMLET_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(HAMLET_AMX)
#define HAMLET_FOR_EACH_ISA(apply) apply(baseline) apply(avx2) apply(avx512) apply(amx)
#elif defined(__x86_64__)
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

#if defined(HAMLET_AMX)
// The kernel keeps room for a process's matrix registers once it has asked for it (Documentation/arch/x86/xstate.rst).
bool may_use_matrix_registers() {
    constexpr long REQUEST_PERMISSION = 0x1023, MATRIX_DATA = 18;
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, MATRIX_DATA) == 0;
}
#endif

bool has(const std::string& name) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (name == "avx2") return avx2;
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (name == "avx512") return avx512;
#if defined(HAMLET_AMX)
    if (name == "amx")
        return avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("amx-bf16") &&
               may_use_matrix_registers();
#endif
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
