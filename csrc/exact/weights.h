// Weights of one input of a convolution, in the order in which the kernels read them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "exact/kernels.h"

namespace mlic::exact {

class Weights {
 public:
  // w: [outputs, kernel, kernel, channels]. Throws std::invalid_argument where a weight exceeds
  // kWeightLimit or a sum of products with activations could leave int32.
  Weights(const int16_t* w, ptrdiff_t outputs, ptrdiff_t kernel, ptrdiff_t channels, Layout layout,
          int threads);

  ptrdiff_t outputs() const { return outputs_; }
  ptrdiff_t kernel() const { return kernel_; }
  ptrdiff_t channels() const { return channels_; }
  ptrdiff_t padded_channels() const { return (channels_ + 1) / 2 * 2; }
  Layout layout() const { return layout_; }
  const void* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(void* p) const;
  };
  // w: [outputs, taps * channels]
  void pack_pairs(const int16_t* w, Panel panel);
  void pack_tiles(const int16_t* w, int group);

  ptrdiff_t outputs_, kernel_, channels_;
  Layout layout_;
  std::unique_ptr<void, Free> data_;
};

}  // namespace mlic::exact
