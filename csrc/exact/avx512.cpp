// Built with the AVX-512 options where the architecture has them; empty elsewhere.
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && \
    defined(__AVX512VL__) && defined(__AVX512VNNI__)
#include "exact/simd_avx512.h"
// After the vectors.
#include "exact/kernels_impl.h"
namespace mlic::exact {
const Kernels* avx512_kernels() { return &kKernels; }
}  // namespace mlic::exact
#else
#include "exact/kernels.h"
namespace mlic::exact {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace mlic::exact
#endif
