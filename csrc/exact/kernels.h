// The inner kernels, compiled once for each instruction set, and the plain structs they work on.
//
// Only plain data crosses this boundary: no inline function of the standard library may be compiled
// with wider instructions, lest the linker keep that copy for everybody.
#pragma once

#include <cstddef>
#include <cstdint>

#include "exact/constants.h"

namespace mlic::exact {

// Outputs come in groups of 16.
constexpr int kGroup = 16;

// How packed weights lie: for instructions on pairs of 16-bit integers, panel by panel, [pair of
// channels][groups][16][2], panels being wide or not; or for those on tiles of bytes,
// [groups][blocks of 64 channels][high, low][16][16][4], where an integer is 256 times its high
// byte plus its low byte, both with a sign, and the last dimension is of channels.
enum class Layout { kPairs, kWidePairs, kTiles };

// Groups that are computed together share a panel: up to three, or four where registers are many.
constexpr int kMostPanelGroups = 4;

// (Internal linkage, for the reason above.)
static inline int panel_groups(Layout layout) {
  return layout == Layout::kPairs ? kMostPanelGroups - 1 : kMostPanelGroups;
}

struct Panel {
  int first;   // first group
  int groups;  // at least 1
};

static inline int panel_count(Layout layout, int groups) {
  const int most = panel_groups(layout);
  return (groups + most - 1) / most;
}

// As even as can be, the wide ones first: 9 groups are 3 + 3 + 3 rather than 4 + 4 + 1.
static inline Panel panel_of(Layout layout, int groups, int index) {
  const int less = panel_groups(layout) - 1;
  const int more = groups - less * panel_count(layout, groups);
  const int wide = more > 0 ? more : 0;
  if (index < wide) return {(less + 1) * index, less + 1};
  const int first = wide + less * index;
  return {first, groups - first < less ? groups - first : less};
}

constexpr ptrdiff_t kTileRows = 16;
constexpr ptrdiff_t kTileChannels = 64;
constexpr ptrdiff_t kTileBytes = kTileRows * kTileChannels;

static inline ptrdiff_t tile_blocks(ptrdiff_t channels) {
  return (channels + kTileChannels - 1) / kTileChannels;
}

// One input of a convolution. Position n of the output sees, for each of `rows` kernel rows,
// 2 * pairs consecutive integers from x + corners[n] * position_stride + row * row_stride.
struct Segment {
  const int16_t* x;
  ptrdiff_t position_stride;
  ptrdiff_t row_stride;
  ptrdiff_t pairs;
  const void* weights;  // in the kernels' layout
  const float* scales;  // of the weights, [outputs]
  float unit;           // of x: the multiplier of an output is its scale * unit
};

struct Conv {
  const Segment* segments;
  int segment_count;
  int rows;
  int outputs;
  const ptrdiff_t* corners;  // position_stride apart, of the top left input of every position
  const float* bias;         // [outputs], or null
  const float* partial;      // [positions, outputs], or null
  bool gelu;
  const float* residual;        // [positions, outputs], or null
  const int16_t* residual_act;  // likewise, with a stride between positions
  ptrdiff_t residual_stride;
  float residual_scale;
  float* out_float;  // one of the two may be null; out_float may be residual or partial
  int16_t* out_act;
  float out_scale;
};

// Extra memory of a call of Kernels::conv for tiles: the split inputs of as many positions as the
// second level cache holds well, and the whole input of one position.
static inline ptrdiff_t conv_blocks(const Conv& c) {
  ptrdiff_t blocks = 0;
  for (int s = 0; s < c.segment_count; ++s) {
    blocks += tile_blocks(c.rows * 2 * c.segments[s].pairs);
  }
  return blocks;
}

static inline ptrdiff_t conv_tiles(const Conv& c) {
  constexpr ptrdiff_t most = 6;
  const ptrdiff_t fits = (ptrdiff_t{1} << 19) / (2 * kTileBytes * (conv_blocks(c) + 1));
  return fits < 1 ? 1 : fits < most ? fits : most;
}

static inline ptrdiff_t conv_scratch(const Conv& c) {
  return 2 * conv_blocks(c) * (conv_tiles(c) * kTileBytes + kTileChannels);
}

// A convolution of 3x3 or 5x5 over one input at all positions, by tiles of 2x2 of them, which are
// numbered through all images; those at the right and lower edges may be cut. A tile reads `shifts`
// x `shifts` windows of 4x4 inputs, each two rows or columns from the next. Tiles are done in
// blocks of one of these sizes.
constexpr ptrdiff_t kWinogradTiles = 24, kMostWinogradTiles = 2 * kWinogradTiles;
constexpr ptrdiff_t kWinogradChannels = 32;  // channels are a multiple of these

struct Winograd {
  const int16_t* x;  // of images, without a border
  ptrdiff_t position_stride;
  ptrdiff_t height, width, channels;
  // [panels][winograd_products()][pairs of channels][columns of the panel][2]
  const int16_t* weights;
  ptrdiff_t shifts;    // 1 for 3x3, 2 for 5x5
  ptrdiff_t part;      // channels of which four times the sum of products fits with any inputs
  float most_squares;  // up to this sum of squares of a tile's inputs, that of all channels fits
  const float* scales;
  float unit;
  const int16_t* zeros;  // [channels]
};

// Whether a row (or column) of a window has weights: the last window's do. Those before it have two
// taps in place of three, and no use for the last row.
static inline bool winograd_uses(ptrdiff_t shifts, ptrdiff_t shift, ptrdiff_t row) {
  return shift == shifts - 1 || row < 3;
}

// For each of the 4x4 rows and columns of a window, row by row, the shifts that use it.
static inline ptrdiff_t winograd_products(ptrdiff_t shifts) {
  const ptrdiff_t used = 4 + 3 * (shifts - 1);
  return used * used;
}

// Twice as many where the weights come from memory beyond the second level cache.
static inline ptrdiff_t winograd_tiles(const Winograd& s, int outputs) {
  return s.channels * outputs > 1 << 16 ? kMostWinogradTiles : kWinogradTiles;
}

static inline ptrdiff_t winograd_scratch(const Winograd& s, int outputs) {
  return winograd_tiles(s, outputs) *
         (20 * kMostPanelGroups * kGroup * 4 + s.shifts * s.shifts * 16 * s.channels * 2);
}

struct Depthwise {
  const int16_t* x;
  ptrdiff_t position_stride;
  ptrdiff_t height, width, channels;
  const int32_t* weights;  // see depthwise_taps
  const float* bias;
  const float* scales;
  float unit;
  bool gelu;
  const int16_t* zeros;  // [channels]
  float out_scale;
};

struct LayerNorm {
  const int16_t* x;
  ptrdiff_t position_stride;
  ptrdiff_t channels;
  const float* gain;
  const float* bias;
  float epsilon;
  int16_t* out;
  float out_scale;
};

// Largest depth of a head of any attention: the difference of two logits must fit int32.
constexpr int kMaxDepth = 64;

// A window's queries in lanes: five for each row of the window, then one lane without a meaning,
// and two more such lanes at the end. Its keys come in pairs within a row, the third with none.
constexpr int kRowLanes = kWindow + 1;
constexpr int kRowPairs = (kWindow + 1) / 2;
constexpr int kWindowLanes = 32;

// Queries, keys and values of images with a border of two zeros, depth padded to even.
struct WindowAttention {
  const int32_t* q;  // pairs of channels [batch, heads, pairs, padded positions], readable 3 beyond
  const int16_t* k;  // [batch, padded positions, heads, 2 * pairs]
  const int16_t* v;  // [batch, padded positions, heads, columns, 2], of a position and the next one
  ptrdiff_t height, width;
  ptrdiff_t padded_width, padded_positions;
  int heads, depth;
  float logit_scale;
  const float* bias;  // [heads, keys, kWindowLanes]
  float value_scale;
  int16_t* out;  // [positions / 2, kTokens, heads, depth]
  float out_scale;
};

// One head of linear attention; columns are its depth, padded to groups.
struct LinearKeys {
  const int16_t* k;
  ptrdiff_t k_stride;
  const int16_t* v;
  ptrdiff_t v_stride;
  ptrdiff_t positions, depth;
  float scale;  // of keys
};

struct LinearQueries {
  const int16_t* q;
  ptrdiff_t q_stride, depth;
  float scale;             // of queries
  const int16_t* context;  // [pairs of channels, columns, 2]
  float real_scale;        // of the context
  int16_t* out;
  ptrdiff_t out_stride;
  float out_scale;
};

// One head of softmax attention.
constexpr int kQueryRows = 8;
constexpr int kKeyBlock = 256;

struct SoftmaxAttention {
  const int16_t* q;  // [queries, 2 * pairs]
  ptrdiff_t queries, query_width, query_stride;
  ptrdiff_t pairs;
  const int16_t* keys;    // [key blocks of 16, pairs, 16, 2]
  const int16_t* values;  // [padded keys / 2, 16 * value_groups, 2]
  ptrdiff_t key_count, key_width;
  int value_groups;
  bool exclude;  // queries are squeezed non-anchors, keys squeezed anchors
  float logit_scale;
};

constexpr uint32_t kDigestStep = 0x9e3779b1;  // of the digest, between latents

struct Kernels {
  Layout layout;  // of the weights
  // Positions begin .. end of the panels first .. last. `scratch` is conv_scratch() bytes, aligned
  // to 64, for tiles; else null.
  void (*conv)(const Conv&, int first, int last, ptrdiff_t begin, ptrdiff_t end, void* scratch);
  // Tiles begin .. end; without segments, rows and corners. `scratch` is winograd_scratch() bytes.
  // For weights in pairs.
  void (*winograd)(const Conv&, const Winograd&, ptrdiff_t begin, ptrdiff_t end, void* scratch);
  // Positions begin .. end, out of batch * height * width, into out [end - begin, channels].
  void (*depthwise)(const Depthwise&, ptrdiff_t begin, ptrdiff_t end, int16_t* out);
  void (*layer_norm)(const LayerNorm&, ptrdiff_t begin, ptrdiff_t end);
  // Row of windows, out of batch * height.
  void (*window_attention)(const WindowAttention&, ptrdiff_t row);
  // Adds one head's sums of softmax weights times values, [depth, columns], and sums of weights,
  // [columns].
  void (*linear_keys)(const LinearKeys&, int64_t* sums, int64_t* totals);
  void (*linear_queries)(const LinearQueries&, ptrdiff_t count);
  // At most kQueryRows queries from `first` on: sums [kQueryRows, 16 * value_groups] (zeroed by the
  // caller) and totals [kQueryRows].
  void (*softmax_attention)(const SoftmaxAttention&, ptrdiff_t first, int count, int64_t* sums,
                            int64_t* totals);
  // quantise(r[i] / divisor * real_scale)
  void (*quantise_ratio)(const float* r, float divisor, float real_scale, float scale, int16_t* out,
                         ptrdiff_t count);
  void (*quantise)(const float* r, float scale, int16_t* out, ptrdiff_t count);
  // round(r[i] * r[i] * scale), clamped to 2 kSquareBits bits: the upper half and the lower one
  void (*squares)(const float* r, float scale, int16_t* high, int16_t* low, ptrdiff_t count);
  // quantise(r[i] / root + skip[i]), or r[i] * root if `inverse`; root = sqrt(norm[i])
  void (*normalise)(const float* r, const float* norm, const float* skip, bool inverse, float scale,
                    int16_t* out, ptrdiff_t count);
  // round(r[i]), clamped to 0 .. 255
  void (*to_bytes)(const float* r, uint8_t* out, ptrdiff_t count);
  // y[i] = y[i] + half_tanh(r[i])
  void (*add_half_tanh)(const float* r, float* y, ptrdiff_t count);
  // out[i] = how many of the bounds, which ascend, are below s[i]; all of them for NaN
  void (*scale_indexes)(const float* s, const float* bounds, int bound_count, uint8_t* out,
                        ptrdiff_t count);
  // out[i] = round(y[i] - means[i]) within kSymbolLimit; 0 for NaN
  void (*symbols)(const float* y, const float* means, int32_t* out, ptrdiff_t count);
  // y[i] = symbols[i] + means[i]
  void (*decoded)(const int32_t* symbols, const float* means, float* y, ptrdiff_t count);
  // What latents add to the digest (mlic_fast/engine/digest.py). `first` is the number of the first
  // one, `step` what the next one's is more, both times kDigestStep, modulo 2^32.
  uint32_t (*digest)(const float* y, uint32_t first, uint32_t step, ptrdiff_t count);
  // A loop of products in registers alone; gives their number.
  int64_t (*peak)(int64_t iterations);
};

// Null where the compiler has not been given the instructions (another architecture).
const Kernels* scalar_kernels();
const Kernels* avx2_kernels();
const Kernels* avxvnni_kernels();
const Kernels* avx512_kernels();
const Kernels* amx_kernels();
const Kernels* neon_kernels();

}  // namespace mlic::exact
