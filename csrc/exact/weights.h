// Weights of one input of a convolution, in the order in which the kernels read them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "exact/kernels.h"

namespace mlic::exact {

struct Free {
  void operator()(void* p) const;
};

// The weights of a convolution as Kernels::winograd reads them; no data where the convolution
// cannot be done so.
struct WinogradWeights {
  std::unique_ptr<int16_t, Free> data;
  ptrdiff_t part;      // channels whose sums of products fit the kernel's
  float most_squares;  // up to this sum of squares of a tile's inputs, all channels' do
};

class Weights {
 public:
  // w: [outputs, kernel, kernel, channels]. Throws std::invalid_argument where a weight exceeds
  // kWeightLimit or a sum of products with activations could leave int32.
  Weights(const int16_t* w, ptrdiff_t outputs, ptrdiff_t kernel, ptrdiff_t channels, Layout layout,
          int threads);

  ~Weights() { delete winograd_.load(); }
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;

  ptrdiff_t outputs() const { return outputs_; }
  ptrdiff_t kernel() const { return kernel_; }
  ptrdiff_t channels() const { return channels_; }
  ptrdiff_t padded_channels() const { return (channels_ + 1) / 2 * 2; }
  Layout layout() const { return layout_; }
  const void* data() const { return data_.get(); }
  // Made when it is first asked for, from weights in pairs; null where the convolution cannot be
  // done so.
  const WinogradWeights* winograd(int threads) const;

 private:
  // w: [outputs, taps * channels]
  void pack_pairs(const int16_t* w, Panel panel);
  void pack_tiles(const int16_t* w, int group);
  // Of the panel with columns first .. first + columns, the weight of the first one; each column's
  // is two integers from the last. For weights in pairs.
  const int16_t* packed(ptrdiff_t first, ptrdiff_t columns, ptrdiff_t tap, ptrdiff_t channel) const;
  // f(first, columns) of every panel, zero columns beyond the outputs among them.
  template <class F>
  void for_panels(int threads, const F& f) const;
  ptrdiff_t winograd_part(int threads) const;
  float most_squares(int threads) const;
  WinogradWeights make_winograd(int threads) const;
  // Of a column and channel, winograd_products() integers, `step` apart; false if they do not fit.
  bool transform_weights(ptrdiff_t first, ptrdiff_t columns, ptrdiff_t column, ptrdiff_t channel,
                         ptrdiff_t step, int16_t* to) const;

  ptrdiff_t outputs_, kernel_, channels_;
  Layout layout_;
  std::unique_ptr<void, Free> data_;
  // No lock, which a process could be forked with: threads that ask at once each make it.
  mutable std::atomic<const WinogradWeights*> winograd_{nullptr};
};

}  // namespace mlic::exact
