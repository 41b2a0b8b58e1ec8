#include "exact/weights.h"

#include <atomic>
#include <cstdlib>
#include <limits>
#include <new>
#include <stdexcept>

#include "exact/constants.h"
#include "exact/kernels.h"
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

void Weights::Free::operator()(int16_t* p) const { std::free(p); }

Weights::Weights(const int16_t* w, ptrdiff_t outputs, ptrdiff_t kernel, ptrdiff_t channels,
                 int threads)
    : outputs_(outputs), kernel_(kernel), channels_(channels) {
  const ptrdiff_t taps = kernel * kernel;
  const ptrdiff_t row = padded_channels();
  const int groups = static_cast<int>((outputs + kGroup - 1) / kGroup);
  const auto bytes = static_cast<size_t>(groups * kGroup * taps * row) * sizeof(int16_t);
  data_.reset(static_cast<int16_t*>(std::aligned_alloc(kAlignment, bytes)));
  if (data_ == nullptr) throw std::bad_alloc();

  std::atomic<bool> valid{true};
  parallel_for(panel_count(groups), threads, [&](ptrdiff_t index) {
    const Panel panel = panel_of(groups, static_cast<int>(index));
    const ptrdiff_t columns = ptrdiff_t{panel.groups} * kGroup;
    int16_t* to = data_.get() + ptrdiff_t{panel.first} * kGroup * taps * row;
    for (ptrdiff_t column = 0; column < columns; ++column) {
      const ptrdiff_t o = ptrdiff_t{panel.first} * kGroup + column;
      const int16_t* from = o < outputs ? w + o * taps * channels : nullptr;
      if (from != nullptr && !fits_int32(from, taps * channels)) valid = false;
      for (ptrdiff_t tap = 0; tap < taps; ++tap) {
        for (ptrdiff_t c = 0; c < row; ++c) {
          const ptrdiff_t pair = (tap * row + c) / 2;
          const bool inside = from != nullptr && c < channels;
          to[(pair * columns + column) * 2 + c % 2] =
              inside ? from[tap * channels + c] : int16_t{0};
        }
      }
    }
  });
  if (!valid) {
    throw std::invalid_argument(
        "weights must not exceed 16383, nor their sums of products with activations int32");
  }
}

}  // namespace mlic::exact
