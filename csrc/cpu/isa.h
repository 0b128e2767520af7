// The instruction sets that the kernels were compiled for, and the one in use.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace hamlet {

// Names of those that this processor has, the best last.
std::vector<std::string> instruction_sets();

// The kernels in use: of the best set, unless `use_instruction_set` chose another.
const Kernels& kernels();

// Throws std::invalid_argument for a set that was not compiled or that the processor lacks.
void use_instruction_set(const std::string& name);

}  // namespace hamlet
