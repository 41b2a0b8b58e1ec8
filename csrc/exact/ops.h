// The operations of the entropy path on whole arrays: layouts, memory and threads around the inner
// kernels. Arguments have been checked (bindings.cpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "exact/kernels.h"
#include "exact/weights.h"

namespace mlic::exact {

// [batch, height, width, channels] with `stride` integers from one position to the next.
struct Act {
  const int16_t* data;
  ptrdiff_t batch, height, width, channels, stride;

  ptrdiff_t positions() const { return batch * height * width; }
};

// Of an output: all positions, those of a colour, or even rows and columns.
enum class Positions { kAll = -1, kNonAnchors = 0, kAnchors = 1, kEven = 2 };

// Column of position 0 of a squeezed row; row is one of all images' rows.
inline ptrdiff_t first_column(ptrdiff_t row, ptrdiff_t height, Positions at) {
  return (row % height + static_cast<int>(at)) % 2;
}

struct Input {
  Act x;
  const Weights* weights;
  const float* scales;
  float unit;
};

// [rows, width, channels] with `stride` reals from one position to the next; `rows` are those of
// all images, of `height` each.
struct Latents {
  float* data;
  ptrdiff_t rows, height, width, channels, stride;
  Positions at;

  // Position j of a squeezed row.
  float* squeezed(ptrdiff_t row, ptrdiff_t j) const {
    return data + (row * width + 2 * j + first_column(row, height, at)) * stride;
  }
};

// Weights [3, 3, channels] as Kernels::depthwise reads them: pairs of the upper two rows, and of
// the lowest and zero, [3 columns, 2, channels].
std::vector<int32_t> depthwise_taps(const int16_t* weights, ptrdiff_t channels);

// Positions begin .. end of the panels first .. last, with the memory that they need.
void conv_panels(const Kernels& kernels, const Conv& c, int first, int last, ptrdiff_t begin,
                 ptrdiff_t end);

// Positions of a tile, the values of which a thread takes through several layers: activations of
// 512 channels take 48 KiB, so all of a tile lies in the second level cache, and the weights of a
// layer are read once for many positions.
constexpr ptrdiff_t kTile = 48;

// Memory of a thread for the values of its tile, kept for the next one.
void* tile_memory(ptrdiff_t bytes);

// A 1x1 convolution at positions 0 .. count of a tile; c lacks rows and corners.
void conv_in_tile(const Kernels& kernels, Conv c, ptrdiff_t count);

struct Runner {
  const Kernels* kernels;
  int threads;

  // Fills in c's segments and corners, and runs it. All inputs are of one size.
  void conv(const std::vector<Input>& inputs, Positions at, ptrdiff_t positions, Conv c) const;
  // The same of one input at all positions with fewer products, and of inputs with all products.
  void winograd(const Input& input, const WinogradWeights& weights, const Conv& c) const;
  void direct(const std::vector<Input>& inputs, Positions at, ptrdiff_t positions, Conv c) const;
  // d lacks the weights, here [3, 3, channels], and the zeros.
  void depthwise(const int16_t* weights, ptrdiff_t batch, Depthwise d, int16_t* out) const;
  void layer_norm(const LayerNorm& l, ptrdiff_t positions) const;
  // bias: [heads, kTokens, kTokens]; a lacks q, k, v, bias, sizes and depth.
  void window_attention(const Act& qkv, const float* bias, WindowAttention a) const;

  // Scales: of queries, keys and the output; value_exponent: real = integer * 2^-exponent.
  void linear_attention(const Act& q, const Act& k, const Act& v, int heads, float query_scale,
                        float key_scale, int value_exponent, float out_scale, int16_t* out) const;
  void softmax_attention(const Act& q, const Act& k, const Act& v, int heads, bool exclude,
                         float logit_scale, float value_scale, float out_scale, int16_t* out) const;

  // One colour of x, zero off it: [batch, height, width, channels], where x and `out` have `width`
  // columns, or half of them if squeezed.
  void colour(const Act& x, Positions at, ptrdiff_t width, bool squeezed, int16_t* out) const;

  // Latents of one colour. They are squeezed, [positions, channels], with a stride between
  // positions; integers lie channel by channel, [channels, positions].
  void scale_indexes(const float* scales, ptrdiff_t stride, ptrdiff_t positions, ptrdiff_t channels,
                     const float* bounds, int bound_count, uint8_t* out) const;
  void symbols(const Latents& y, const float* means, ptrdiff_t stride, int32_t* out) const;
  // Symbols plus means; the other colour becomes zero if `clear`.
  void decoded(const int32_t* symbols, const float* means, ptrdiff_t stride, bool clear,
               const Latents& y) const;

  // The digest of latents of one image that lie `stride` apart, [positions, channels], the first of
  // which has the number `first` of all.
  uint32_t digest(const float* y, ptrdiff_t stride, ptrdiff_t positions, ptrdiff_t channels,
                  uint64_t first) const;

  // out = r times a factor for each channel; r lies `stride` apart.
  void scale(const float* r, ptrdiff_t stride, ptrdiff_t positions, ptrdiff_t channels,
             const float* factors, float* out) const;
  void quantise(const float* r, float scale, int16_t* out, ptrdiff_t count) const;
  // y [batch, height, width, channels] += half_tanh(r) at one colour; r is squeezed.
  void add_half_tanh(const float* r, Positions at, ptrdiff_t rows, ptrdiff_t height,
                     ptrdiff_t width, ptrdiff_t channels, float* y) const;
};

}  // namespace mlic::exact
