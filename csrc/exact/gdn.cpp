#include "exact/gdn.h"

#include <algorithm>

#include "exact/constants.h"
#include "pool.h"

namespace mlic::exact {
namespace {

// What is normalised, and what it becomes.
struct Arrays {
  const float* r;
  const float* skip;
  bool spread;
  ptrdiff_t width, channels;
  int16_t* out;
};

// Positions begin .. end, whose norms are given.
void normalise(const Kernels& kernels, const Gdn& g, const Arrays& a, ptrdiff_t begin,
               ptrdiff_t end, const float* norm) {
  const auto run = [&](ptrdiff_t n, const float* skip, ptrdiff_t positions) {
    const ptrdiff_t first = n * a.channels;
    kernels.normalise(a.r + first, norm + (n - begin) * a.channels, skip, g.inverse, g.out_scale,
                      a.out + first, positions * a.channels);
  };
  if (!a.spread) return run(begin, a.skip + begin * a.channels, end - begin);
  for (ptrdiff_t n = begin; n < end; n += 2) {
    const ptrdiff_t row = n / a.width, column = n % a.width;
    run(n, a.skip + ((row / 2 * a.width + column) * 2 + row % 2 * 2) * a.channels, 2);
  }
}

}  // namespace

void gdn(const Runner& run, const Gdn& g, const float* r, const float* skip, bool spread,
         ptrdiff_t rows, ptrdiff_t width, int16_t* out) {
  const Kernels& kernels = *run.kernels;
  const ptrdiff_t channels = g.gamma->channels();
  const ptrdiff_t padded = g.gamma->padded_channels();
  const ptrdiff_t positions = rows * width;
  const Arrays arrays{r, skip, spread, width, channels, out};
  parallel_for((positions + kTile - 1) / kTile, run.threads, [&](ptrdiff_t tile) {
    const ptrdiff_t begin = tile * kTile;
    const ptrdiff_t count = std::min(kTile, positions - begin);
    // The upper parts of a position's squares, then the lower ones.
    const ptrdiff_t norms = kTile * channels * ptrdiff_t{sizeof(float)};
    auto* norm = static_cast<float*>(tile_memory(norms + kTile * 4 * padded));
    auto* squares = reinterpret_cast<int16_t*>(norm + kTile * channels);
    for (ptrdiff_t n = 0; n < count; ++n) {
      int16_t* upper = squares + n * 2 * padded;
      int16_t* lower = upper + padded;
      upper[padded - 1] = lower[padded - 1] = 0;
      kernels.squares(r + (begin + n) * channels, g.square_scale, upper, lower, channels);
    }
    const void* gamma = g.gamma->data();
    const float unit = 1.0f / g.square_scale;
    const Segment parts[] = {
        {squares, 2 * padded, 0, padded / 2, gamma, g.scales, unit * (1 << kSquareBits)},
        {squares + padded, 2 * padded, 0, padded / 2, gamma, g.scales, unit}};
    Conv c{};
    c.segments = parts;
    c.segment_count = 2;
    c.outputs = static_cast<int>(channels);
    c.bias = g.beta;
    c.out_float = norm;
    conv_in_tile(kernels, c, count);
    normalise(kernels, g, arrays, begin, begin + count, norm);
  });
}

}  // namespace mlic::exact
