// Mixing blocks, the layers of block transforms, in chains. The layers between two depthwise ones
// are computed for a tile of positions at a time, so that their values stay in the cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "exact/ops.h"
#include "exact/weights.h"

namespace mlic::exact {

// A 1x1 convolution, or the depthwise one: how its sums become reals, and these an activation.
struct Scaling {
  std::vector<float> bias;
  std::vector<float> scales;  // of the weights
  float unit;                 // of the input
  float out_scale;            // of the activation that is its output
};

struct Pointwise {
  std::shared_ptr<const Weights> weights;
  Scaling scaling;
};

struct MixingBlock {
  Pointwise mix_in;           // GELU, then an activation
  std::vector<int32_t> taps;  // of the depthwise layer, as in Depthwise
  Scaling depthwise;
  Pointwise mix_out;   // plus the input; a real, and its activation
  Pointwise expand;    // GELU, then an activation
  Pointwise contract;  // plus the input; a real
  float in_scale;      // of the activations of the input, and of the sum after mix_out
};

// Blocks of `channels` channels, even in number, one after the other on x [batch, height, width,
// channels], in place.
void mixing_blocks(const Runner& run, const std::vector<const MixingBlock*>& blocks,
                   ptrdiff_t batch, ptrdiff_t height, ptrdiff_t width, ptrdiff_t channels,
                   float* x);

// Side of the blocks of pixels that block transforms take as vectors.
constexpr ptrdiff_t kBlock = 8;
constexpr ptrdiff_t kColours = 3;

// Images in blocks of side x side pixels, of kBlock or of one.
struct Blocks {
  ptrdiff_t batch, height, width;  // in blocks
  ptrdiff_t side;

  ptrdiff_t size() const { return kColours * side * side; }
};

// images [batch, kColours, side * height, side * width] <-> [batch, height, width, size()]: channel
// (colour * side + v) * side + u is row v and column u of a block.
void to_blocks(const Runner& run, const uint8_t* images, const Blocks& b, int16_t* out);
void to_pixels(const Runner& run, const float* r, const Blocks& b, uint8_t* images);

// [batch, 2 height, 2 width, C] -> [batch, height, width, 4 C], where channel (2u + v) C + c is row
// 2y + u, column 2x + v, or with `spread` the inverse. `bytes` are those of C values.
void rearrange_fours(const Runner& run, const void* x, ptrdiff_t batch, ptrdiff_t height,
                     ptrdiff_t width, ptrdiff_t bytes, bool spread, void* out);

}  // namespace mlic::exact
