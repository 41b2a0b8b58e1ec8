#include "exact/dispatch.h"

#include <stdexcept>

namespace mlic::exact {
namespace {

bool has_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2");
#else
  return false;
#endif
}

bool has_avx512() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  if (avx512_kernels() != nullptr && has_avx512()) names.emplace_back("avx512");
  if (avx2_kernels() != nullptr && has_avx2()) names.emplace_back("avx2");
  names.emplace_back("scalar");
  return names;
}

const Kernels& kernels_for(const std::string& name) {
  for (const std::string& supported : instruction_sets()) {
    if (supported != name) continue;
    if (name == "avx512") return *avx512_kernels();
    return name == "avx2" ? *avx2_kernels() : *scalar_kernels();
  }
  throw std::invalid_argument("unsupported instruction set " + name);
}

}  // namespace mlic::exact
