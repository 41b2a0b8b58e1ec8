#include "exact/dispatch.h"

#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace mlic::exact {
namespace {

struct InstructionSet {
  const char* name;
  const Kernels* kernels;  // null where this build lacks them
  bool supported;          // by this machine
};

#if defined(__x86_64__)

// Not every compiler knows it by name.
bool has_avxvnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;
}

std::vector<InstructionSet> known() {
  const bool avx2 = __builtin_cpu_supports("avx2");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vnni");
  return {{"avx512", avx512_kernels(), avx512},
          {"avxvnni", avxvnni_kernels(), avx2 && has_avxvnni()},
          {"avx2", avx2_kernels(), avx2},
          {"scalar", scalar_kernels(), true}};
}

#else

std::vector<InstructionSet> known() {
  return {{"neon", neon_kernels(), true}, {"scalar", scalar_kernels(), true}};
}

#endif

bool is_usable(const InstructionSet& set) { return set.supported && set.kernels != nullptr; }

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const InstructionSet& set : known()) {
    if (is_usable(set)) names.emplace_back(set.name);
  }
  return names;
}

const Kernels& kernels_for(const std::string& name) {
  for (const InstructionSet& set : known()) {
    if (is_usable(set) && set.name == name) return *set.kernels;
  }
  throw std::invalid_argument("unsupported instruction set " + name);
}

}  // namespace mlic::exact
