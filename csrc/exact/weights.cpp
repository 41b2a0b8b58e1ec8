#include "exact/weights.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>
#include <vector>

#include "exact/constants.h"
#include "pool.h"

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

// As wide as a weight's integers.
constexpr int kWinogradLimit = std::numeric_limits<int16_t>::max();

// Weights of at most 3x3 as rows and columns of g0, g0 + g1 + g2, g0 - g1 + g2, g2.
void transform(const int (&g)[9], int (&to)[16]) {
  int rows[4][3];
  for (int j = 0; j < 3; ++j) {
    rows[0][j] = g[j];
    rows[1][j] = g[j] + g[3 + j] + g[6 + j];
    rows[2][j] = g[j] - g[3 + j] + g[6 + j];
    rows[3][j] = g[6 + j];
  }
  for (int i = 0; i < 4; ++i) {
    const int* row = rows[i];
    to[4 * i] = row[0];
    to[4 * i + 1] = row[0] + row[1] + row[2];
    to[4 * i + 2] = row[0] - row[1] + row[2];
    to[4 * i + 3] = row[2];
  }
}

void* allocate(ptrdiff_t bytes) {
  void* p = std::aligned_alloc(kAlignment, static_cast<size_t>(bytes));
  if (p == nullptr) throw std::bad_alloc();
  return p;
}

}  // namespace

void Free::operator()(void* p) const { std::free(p); }

Weights::Weights(const int16_t* w, ptrdiff_t outputs, ptrdiff_t kernel, ptrdiff_t channels,
                 Layout layout, int threads)
    : outputs_(outputs), kernel_(kernel), channels_(channels), layout_(layout) {
  const ptrdiff_t inputs = kernel * kernel * padded_channels();
  const int groups = static_cast<int>((outputs + kGroup - 1) / kGroup);
  const ptrdiff_t group_bytes = layout == Layout::kTiles
                                    ? 2 * kTileBytes * tile_blocks(inputs)
                                    : kGroup * inputs * static_cast<ptrdiff_t>(sizeof(int16_t));
  data_.reset(allocate(groups * group_bytes));

  std::atomic<bool> valid{true};
  const ptrdiff_t used = kernel * kernel * channels;
  parallel_for(panel_count(layout, groups), threads, [&](ptrdiff_t index) {
    const Panel panel = panel_of(layout, groups, static_cast<int>(index));
    const ptrdiff_t first = ptrdiff_t{panel.first} * kGroup;
    const ptrdiff_t last = std::min(outputs, first + ptrdiff_t{panel.groups} * kGroup);
    for (ptrdiff_t o = first; o < last; ++o) {
      if (!fits_int32(w + o * used, used)) valid = false;
    }
    if (layout != Layout::kTiles) return pack_pairs(w, panel);
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

const int16_t* Weights::packed(ptrdiff_t first, ptrdiff_t columns, ptrdiff_t tap,
                               ptrdiff_t channel) const {
  const ptrdiff_t taps = kernel_ * kernel_, row = padded_channels();
  const ptrdiff_t pair = (tap * row + channel) / 2;
  return static_cast<const int16_t*>(data_.get()) + first * taps * row + pair * columns * 2 +
         channel % 2;
}

template <class F>
void Weights::for_panels(int threads, const F& f) const {
  const int groups = static_cast<int>((outputs_ + kGroup - 1) / kGroup);
  parallel_for(panel_count(layout_, groups), threads, [&](ptrdiff_t index) {
    const Panel panel = panel_of(layout_, groups, static_cast<int>(index));
    f(ptrdiff_t{panel.first} * kGroup, ptrdiff_t{panel.groups} * kGroup);
  });
}

// The most channels of which four times a sum of products, with whatever activations, fits int32; 0
// if they are too few.
ptrdiff_t Weights::winograd_part(int threads) const {
  constexpr auto limit = static_cast<int64_t>(std::numeric_limits<int32_t>::max()) / 4 /
                         static_cast<int64_t>(kActivationLimit);
  // Of the magnitudes of a column's weights, by the channels before: [columns][channels + 1].
  const ptrdiff_t columns = (outputs_ + kGroup - 1) / kGroup * kGroup;
  std::vector<int64_t> sums(static_cast<size_t>(columns * (channels_ + 1)));
  for_panels(threads, [&](ptrdiff_t first, ptrdiff_t count) {
    for (ptrdiff_t c = 0; c < channels_; ++c) {
      int64_t* to = sums.data() + first * (channels_ + 1) + c;
      for (ptrdiff_t column = 0; column < count; ++column, to += channels_ + 1) to[1] = to[0];
      for (ptrdiff_t tap = 0; tap < kernel_ * kernel_; ++tap) {
        const int16_t* from = packed(first, count, tap, c);
        to = sums.data() + first * (channels_ + 1) + c;
        for (ptrdiff_t column = 0; column < count; ++column, to += channels_ + 1) {
          to[1] += std::abs(int{from[2 * column]});
        }
      }
    }
  });
  for (ptrdiff_t parts = 1;; ++parts) {
    const ptrdiff_t part = ((channels_ + parts - 1) / parts + 1) / 2 * 2;
    if (part < kWinogradChannels / 4) return 0;
    bool fits = true;
    for (ptrdiff_t column = 0; column < columns; ++column) {
      const int64_t* until = sums.data() + column * (channels_ + 1);
      for (ptrdiff_t c = 0; c < channels_; c += part) {
        fits &= until[std::min(c + part, channels_)] - until[c] <= limit;
      }
    }
    if (fits) return part;
  }
}

// Up to this sum of the squares of its inputs no sum of products leaves a quarter of int32: by
// Cauchy and Schwarz, with a margin for the rounding of both.
float Weights::most_squares(int threads) const {
  const ptrdiff_t groups = (outputs_ + kGroup - 1) / kGroup;
  std::vector<int64_t> sums(static_cast<size_t>(groups * kGroup));
  for_panels(threads, [&](ptrdiff_t first, ptrdiff_t count) {
    for (ptrdiff_t tap = 0; tap < kernel_ * kernel_; ++tap) {
      for (ptrdiff_t c = 0; c < channels_; ++c) {
        const int16_t* from = packed(first, count, tap, c);
        for (ptrdiff_t column = 0; column < count; ++column) {
          sums[static_cast<size_t>(first + column)] += int64_t{from[2 * column]} * from[2 * column];
        }
      }
    }
  });
  const int64_t largest = *std::max_element(sums.begin(), sums.end());
  constexpr double limit = std::numeric_limits<int32_t>::max() / 4;
  return static_cast<float>(0.999 * limit * limit /
                            static_cast<double>(std::max<int64_t>(largest, 1)));
}

WinogradWeights Weights::make_winograd(int threads) const {
  if (layout_ == Layout::kTiles || (kernel_ != 3 && kernel_ != 5)) return {};
  if (channels_ % kWinogradChannels != 0) return {};
  const ptrdiff_t part = winograd_part(threads);
  if (part == 0) return {};
  const ptrdiff_t shifts = kernel_ / 2, products = winograd_products(shifts);
  const ptrdiff_t all_columns = (outputs_ + kGroup - 1) / kGroup * kGroup;
  WinogradWeights made{nullptr, part, most_squares(threads)};
  made.data.reset(static_cast<int16_t*>(
      allocate(all_columns * products * channels_ * ptrdiff_t{sizeof(int16_t)})));
  std::atomic<bool> fits{true};
  for_panels(threads, [&](ptrdiff_t first, ptrdiff_t columns) {
    int16_t* panel = made.data.get() + first * products * channels_;
    for (ptrdiff_t c = 0; c < channels_; ++c) {
      int16_t* to = panel + c / 2 * columns * 2 + c % 2;  // of product 0, column 0
      for (ptrdiff_t column = 0; column < columns; ++column) {
        if (!transform_weights(first, columns, column, c, channels_ * columns, to + 2 * column)) {
          fits = false;
        }
      }
    }
  });
  if (!fits) made.data.reset();
  return made;
}

bool Weights::transform_weights(ptrdiff_t first, ptrdiff_t columns, ptrdiff_t column,
                                ptrdiff_t channel, ptrdiff_t step, int16_t* to) const {
  const ptrdiff_t shifts = kernel_ / 2;
  int transformed[4][16];
  for (ptrdiff_t window = 0; window < shifts * shifts; ++window) {
    int g[9];
    for (ptrdiff_t tap = 0; tap < 9; ++tap) {
      const ptrdiff_t down = window / shifts, right = window % shifts;
      const ptrdiff_t row = 2 * down + tap / 3, side = 2 * right + tap % 3;
      const bool used = (down == shifts - 1 || tap / 3 < 2) && (right == shifts - 1 || tap % 3 < 2);
      g[tap] = used ? packed(first, columns, row * kernel_ + side, channel)[2 * column] : 0;
    }
    transform(g, transformed[window]);
  }
  bool fits = true;
  for (ptrdiff_t i = 0; i < 16; ++i) {
    for (ptrdiff_t window = 0; window < shifts * shifts; ++window) {
      if (!winograd_uses(shifts, window / shifts, i / 4)) continue;
      if (!winograd_uses(shifts, window % shifts, i % 4)) continue;
      const int value = transformed[window][i];
      fits &= std::abs(value) <= kWinogradLimit;
      *to = static_cast<int16_t>(value);
      to += step;
    }
  }
  return fits;
}

const WinogradWeights* Weights::winograd(int threads) const {
  const WinogradWeights* known = winograd_.load(std::memory_order_acquire);
  if (known == nullptr) {
    auto made = std::make_unique<const WinogradWeights>(make_winograd(threads));
    if (winograd_.compare_exchange_strong(known, made.get())) known = made.release();
  }
  return known->data == nullptr ? nullptr : known;
}

}  // namespace mlic::exact
