#include "exact/dispatch.h"

#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mlic::exact {
namespace {

struct InstructionSet {
  const char* name;
  const Kernels* kernels;  // null if this build lacks them
  bool supported;          // by this machine
};

#if defined(__x86_64__)

// Not every compiler knows it by name.
bool has_avxvnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;
}

// Tiles of bytes. Their state is so large that the system must be asked to keep it: once, for all
// threads.
bool has_amx() {
#if defined(__linux__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned saves_states = 1u << 27, tiles = 1u << 24, integers = 1u << 25;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & saves_states) == 0) return false;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  if ((d & tiles) == 0 || (d & integers) == 0) return false;
  unsigned low = 0, high = 0;
  asm("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned tile_states = 3u << 17;
  if ((low & tile_states) != tile_states) return false;
  constexpr long request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

std::vector<InstructionSet> find() {
  const bool avx2 = __builtin_cpu_supports("avx2");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vnni");
  const bool amx = avx512 && __builtin_cpu_supports("avx512vbmi") && has_amx();
  return {{"amx", amx_kernels(), amx},
          {"avx512", avx512_kernels(), avx512},
          {"avxvnni", avxvnni_kernels(), avx2 && has_avxvnni()},
          {"avx2", avx2_kernels(), avx2},
          {"scalar", scalar_kernels(), true}};
}

#else

std::vector<InstructionSet> find() {
  return {{"neon", neon_kernels(), true}, {"scalar", scalar_kernels(), true}};
}

#endif

const std::vector<InstructionSet>& known() {
  static const std::vector<InstructionSet> sets = find();
  return sets;
}

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
