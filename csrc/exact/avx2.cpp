// Built with the AVX2 options where the architecture has them; empty elsewhere.
#if defined(__AVX2__)
#include "exact/simd_avx2.h"
// After the vectors.
#include "exact/kernels_impl.h"
namespace mlic::exact {
const Kernels* avx2_kernels() { return &kKernels; }
}  // namespace mlic::exact
#else
#include "exact/kernels.h"
namespace mlic::exact {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace mlic::exact
#endif
