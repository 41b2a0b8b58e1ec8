#include "exact/simd_scalar.h"
// After the vectors.
#include "exact/kernels_impl.h"

namespace mlic::exact {
const Kernels* scalar_kernels() { return &kKernels; }
}  // namespace mlic::exact
