#include "exact/weights.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>

#include "exact/constants.h"
#include "exact/pool.h"

namespace mlic::exact {
namespace {

constexpr size_t kAlignment = 64;

bool fits_int32(const int16_t* w, ptrdiff_t count) {
  int64_t sum = 0;
  bool in_range = true;
  for (ptrdiff_t i = 0; i < count; ++i) {
    const int magnitude = w[i] < 0 ? -w[i] : w[i];
    in_range &= magnitude <= kWeightLimit;
    sum += magnitude;
  }
  return in_range &&
         sum * static_cast<int64_t>(kActivationLimit) <= std::numeric_limits<int32_t>::max();
}

}  // namespace

void Weights::Free::operator()(void* p) const { std::free(p); }

Weights::Weights(const int16_t* w, ptrdiff_t outputs, ptrdiff_t kernel, ptrdiff_t channels,
                 Layout layout, int threads)
    : outputs_(outputs), kernel_(kernel), channels_(channels), layout_(layout) {
  const ptrdiff_t inputs = kernel * kernel * padded_channels();
  const int groups = static_cast<int>((outputs + kGroup - 1) / kGroup);
  const ptrdiff_t group_bytes = layout == Layout::kTiles
                                    ? 2 * kTileBytes * tile_blocks(inputs)
                                    : kGroup * inputs * static_cast<ptrdiff_t>(sizeof(int16_t));
  data_.reset(std::aligned_alloc(kAlignment, static_cast<size_t>(groups * group_bytes)));
  if (data_ == nullptr) throw std::bad_alloc();

  std::atomic<bool> valid{true};
  const ptrdiff_t used = kernel * kernel * channels;
  parallel_for(panel_count(groups), threads, [&](ptrdiff_t index) {
    const Panel panel = panel_of(groups, static_cast<int>(index));
    const ptrdiff_t first = ptrdiff_t{panel.first} * kGroup;
    const ptrdiff_t last = std::min(outputs, first + ptrdiff_t{panel.groups} * kGroup);
    for (ptrdiff_t o = first; o < last; ++o) {
      if (!fits_int32(w + o * used, used)) valid = false;
    }
    if (layout == Layout::kPairs) return pack_pairs(w, panel);
    for (int i = 0; i < panel.groups; ++i) pack_tiles(w, panel.first + i);
  });
  if (!valid) {
    throw std::invalid_argument(
        "weights must not exceed 16383, nor their sums of products with activations int32");
  }
}

void Weights::pack_pairs(const int16_t* w, Panel panel) {
  const ptrdiff_t taps = kernel_ * kernel_;
  const ptrdiff_t row = padded_channels();
  const ptrdiff_t first = ptrdiff_t{panel.first} * kGroup;
  const ptrdiff_t columns = ptrdiff_t{panel.groups} * kGroup;
  int16_t* to = static_cast<int16_t*>(data_.get()) + first * taps * row;
  for (ptrdiff_t column = 0; column < columns; ++column) {
    const ptrdiff_t o = first + column;
    const int16_t* from = o < outputs_ ? w + o * taps * channels_ : nullptr;
    for (ptrdiff_t tap = 0; tap < taps; ++tap) {
      for (ptrdiff_t c = 0; c < row; ++c) {
        const ptrdiff_t pair = (tap * row + c) / 2;
        const bool inside = from != nullptr && c < channels_;
        to[(pair * columns + column) * 2 + c % 2] = inside ? from[tap * channels_ + c] : int16_t{0};
      }
    }
  }
}

void Weights::pack_tiles(const int16_t* w, int group) {
  const ptrdiff_t taps = kernel_ * kernel_;
  const ptrdiff_t row = padded_channels();
  const ptrdiff_t bytes = 2 * kTileBytes * tile_blocks(taps * row);
  int8_t* to = static_cast<int8_t*>(data_.get()) + group * bytes;
  std::memset(to, 0, static_cast<size_t>(bytes));
  const ptrdiff_t first = ptrdiff_t{group} * kGroup;
  for (ptrdiff_t o = first; o < std::min(outputs_, first + kGroup); ++o) {
    const int16_t* from = w + o * taps * channels_;
    for (ptrdiff_t tap = 0; tap < taps; ++tap) {
      for (ptrdiff_t c = 0; c < channels_; ++c, ++from) {
        const ptrdiff_t k = tap * row + c;
        const auto low = static_cast<int8_t>(*from & 0xff);
        int8_t* high = to + k / kTileChannels * 2 * kTileBytes;
        high += k % kTileChannels / 4 * kTileChannels + (o - first) * 4 + k % 4;
        *high = static_cast<int8_t>((*from - low) / 256);
        high[kTileBytes] = low;
      }
    }
  }
}

}  // namespace mlic::exact
