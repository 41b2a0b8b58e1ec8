// Generalised divisive normalisation (Ballé, Laparra and Simoncelli, "Density Modeling of Images
// using a Generalized Normalization Transformation", 2016), in one operation: docs/arithmetic.md,
// section 10.
#pragma once

#include <cstddef>
#include <cstdint>

#include "exact/ops.h"
#include "exact/weights.h"

namespace mlic::exact {

// The norm is a 1x1 layer of squares: bias beta, weights gamma.
struct Gdn {
  const float* beta;
  const Weights* gamma;
  const float* scales;  // of gamma
  float square_scale;   // of the squares
  bool inverse;
  float out_scale;
};

// r and `out` are [rows, width, channels]; skip, which is added, is too, or [rows / 2, width / 2,
// 2, 2, channels] if `spread`, where the twos are row and column.
void gdn(const Runner& run, const Gdn& g, const float* r, const float* skip, bool spread,
         ptrdiff_t rows, ptrdiff_t width, int16_t* out);

}  // namespace mlic::exact
