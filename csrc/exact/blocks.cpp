#include "exact/blocks.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>

#include "pool.h"

namespace mlic::exact {
namespace {

// Calls f(line of a block, where its pixels begin in an image) for the lines of a row of blocks.
template <class F>
void for_lines(const Blocks& b, ptrdiff_t row, F f) {
  for (ptrdiff_t line = 0; line < kColours * b.side; ++line) {
    const ptrdiff_t plane = row / b.height * kColours + line / b.side;
    const ptrdiff_t y = row % b.height * b.side + line % b.side;
    f(line, (plane * b.height * b.side + y) * b.width * b.side);
  }
}

// Calls f with the side of blocks as a constant: loops over it are then short and unrolled.
template <class F>
void with_side(const Blocks& b, F f) {
  if (b.side == 1) {
    f(std::integral_constant<ptrdiff_t, 1>{});
  } else {
    f(std::integral_constant<ptrdiff_t, kBlock>{});
  }
}

// Room for the values of a tile, four times `channels` at each position.
int16_t* tile_values(ptrdiff_t channels) {
  return static_cast<int16_t*>(tile_memory(kTile * 4 * channels * ptrdiff_t{sizeof(int16_t)}));
}

// Runs the layer at the positions of one tile. Of c only the fields about outputs are set before.
void pointwise(const Kernels& kernels, const Pointwise& layer, const int16_t* x, ptrdiff_t count,
               Conv c) {
  const ptrdiff_t channels = layer.weights->channels();
  const Segment segment{x,
                        channels,
                        0,
                        channels / 2,
                        layer.weights->data(),
                        layer.scaling.scales.data(),
                        layer.scaling.unit};
  c.segments = &segment;
  c.segment_count = 1;
  c.outputs = static_cast<int>(layer.weights->outputs());
  c.bias = layer.scaling.bias.data();
  c.out_scale = layer.scaling.out_scale;
  conv_in_tile(kernels, c, count);
}

void activated(const Kernels& kernels, const Pointwise& layer, const int16_t* x, ptrdiff_t count,
               int16_t* out) {
  Conv c{};
  c.gelu = true;
  c.out_act = out;
  pointwise(kernels, layer, x, count, c);
}

// Adds the layer to r; `out`, unless null, is the activation of the sum.
void added(const Kernels& kernels, const Pointwise& layer, const int16_t* x, ptrdiff_t count,
           float* r, int16_t* out) {
  Conv c{};
  c.residual = r;
  c.out_float = r;
  c.out_act = out;
  pointwise(kernels, layer, x, count, c);
}

}  // namespace

void mixing_blocks(const Runner& run, const std::vector<const MixingBlock*>& blocks,
                   ptrdiff_t batch, ptrdiff_t height, ptrdiff_t width, ptrdiff_t channels,
                   float* x) {
  const Kernels& kernels = *run.kernels;
  const ptrdiff_t positions = batch * height * width;
  const auto size = static_cast<size_t>(positions * channels);
  // Outputs of mix_in for the whole picture, which the depthwise layer reads: of this block and of
  // the next.
  const std::unique_ptr<int16_t[]> mixed(new int16_t[size]);
  const std::unique_ptr<int16_t[]> next_mixed(new int16_t[size]);
  const std::vector<int16_t> zeros(static_cast<size_t>(channels));
  int16_t* now = mixed.get();
  int16_t* next = next_mixed.get();

  const auto tiles = [&](auto work) {
    parallel_for((positions + kTile - 1) / kTile, run.threads, [&](ptrdiff_t tile) {
      const ptrdiff_t begin = tile * kTile;
      work(begin, std::min(kTile, positions - begin));
    });
  };
  const auto mix_in = [&](const MixingBlock& block, ptrdiff_t begin, ptrdiff_t count,
                          int16_t* out) {
    int16_t* q = tile_values(channels);
    kernels.quantise(x + begin * channels, block.in_scale, q, count * channels);
    activated(kernels, block.mix_in, q, count, out + begin * channels);
  };

  tiles([&](ptrdiff_t begin, ptrdiff_t count) { mix_in(*blocks[0], begin, count, now); });
  for (size_t i = 0; i < blocks.size(); ++i) {
    const MixingBlock& block = *blocks[i];
    Depthwise d{};
    d.x = now;
    d.position_stride = channels;
    d.height = height;
    d.width = width;
    d.channels = channels;
    d.weights = block.taps.data();
    d.bias = block.depthwise.bias.data();
    d.scales = block.depthwise.scales.data();
    d.unit = block.depthwise.unit;
    d.zeros = zeros.data();
    d.out_scale = block.depthwise.out_scale;
    tiles([&](ptrdiff_t begin, ptrdiff_t count) {
      float* r = x + begin * channels;
      int16_t* local = tile_values(channels);
      int16_t* sum = local + kTile * channels;
      int16_t* expanded = local + kTile * 2 * channels;
      kernels.depthwise(d, begin, begin + count, local);
      added(kernels, block.mix_out, local, count, r, sum);
      activated(kernels, block.expand, sum, count, expanded);
      added(kernels, block.contract, expanded, count, r, nullptr);
      if (i + 1 < blocks.size()) mix_in(*blocks[i + 1], begin, count, next);
    });
    std::swap(now, next);
  }
}

void to_blocks(const Runner& run, const uint8_t* images, const Blocks& b, int16_t* out) {
  with_side(b, [&](auto side) {
    rearrange(b.batch * b.height, run.threads, [&](ptrdiff_t row) {
      for_lines(b, row, [&](ptrdiff_t line, ptrdiff_t begin) {
        const uint8_t* from = images + begin;
        int16_t* to = out + row * b.width * b.size() + line * side;
        for (ptrdiff_t x = 0; x < b.width; ++x, from += side, to += b.size()) {
          for (ptrdiff_t i = 0; i < side; ++i) to[i] = from[i];
        }
      });
    });
  });
}

void to_pixels(const Runner& run, const float* r, const Blocks& b, uint8_t* images) {
  with_side(b, [&](auto side) {
    parallel_for(b.batch * b.height, run.threads, [&](ptrdiff_t row) {
      const ptrdiff_t values = b.width * b.size();
      auto* bytes = static_cast<uint8_t*>(tile_memory(values));
      run.kernels->to_bytes(r + row * values, bytes, values);
      for_lines(b, row, [&](ptrdiff_t line, ptrdiff_t begin) {
        const uint8_t* from = bytes + line * side;
        uint8_t* to = images + begin;
        for (ptrdiff_t x = 0; x < b.width; ++x, from += b.size(), to += side) {
          for (ptrdiff_t i = 0; i < side; ++i) to[i] = from[i];
        }
      });
    });
  });
}

void rearrange_fours(const Runner& run, const void* x, ptrdiff_t batch, ptrdiff_t height,
                     ptrdiff_t width, ptrdiff_t bytes, bool spread, void* out) {
  const ptrdiff_t pair = 2 * bytes;  // the two of a row lie side by side in both
  rearrange(batch * height, run.threads, [&](ptrdiff_t row) {
    for (ptrdiff_t u = 0; u < 2; ++u) {
      for (ptrdiff_t i = 0; i < width; ++i) {
        const ptrdiff_t wide = ((2 * row + u) * width + i) * pair;
        const ptrdiff_t deep = (2 * (row * width + i) + u) * pair;
        std::memcpy(static_cast<char*>(out) + (spread ? wide : deep),
                    static_cast<const char*>(x) + (spread ? deep : wide),
                    static_cast<size_t>(pair));
      }
    }
  });
}

}  // namespace mlic::exact
