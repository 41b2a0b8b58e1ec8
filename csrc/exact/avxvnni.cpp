// Built with the AVX-VNNI options where compiler and architecture have them; empty elsewhere.
#if defined(__AVX2__) && defined(__AVXVNNI__)
#include "exact/simd_avx2.h"
// After the vectors.
#include "exact/kernels_impl.h"
namespace mlic::exact {
const Kernels* avxvnni_kernels() { return &kKernels; }
}  // namespace mlic::exact
#else
#include "exact/kernels.h"
namespace mlic::exact {
const Kernels* avxvnni_kernels() { return nullptr; }
}  // namespace mlic::exact
#endif
