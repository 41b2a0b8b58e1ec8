// Which instruction set the kernels use.
#pragma once

#include <string>
#include <vector>

#include "exact/kernels.h"

namespace mlic::exact {

// Names of the instruction sets that this build and this machine support, fastest first; the last
// is "scalar".
std::vector<std::string> instruction_sets();

// Throws std::invalid_argument for a name that instruction_sets() does not list.
const Kernels& kernels_for(const std::string& name);

}  // namespace mlic::exact
