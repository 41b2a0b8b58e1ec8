// Empty on other architectures. Big-endian ARM, whose vectors lie the other way round, is one.
#if defined(__aarch64__) && !defined(__AARCH64EB__)
#include "exact/simd_neon.h"
// After the vectors.
#include "exact/kernels_impl.h"
namespace mlic::exact {
const Kernels* neon_kernels() { return &kKernels; }
}  // namespace mlic::exact
#else
#include "exact/kernels.h"
namespace mlic::exact {
const Kernels* neon_kernels() { return nullptr; }
}  // namespace mlic::exact
#endif
