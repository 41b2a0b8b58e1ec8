// Weights of one input of a convolution, in the order in which the kernels read them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace mlic::exact {

class Weights {
 public:
  // w: [outputs, kernel, kernel, channels]. Throws std::invalid_argument where a weight exceeds
  // kWeightLimit or a sum of products with activations could leave int32.
  Weights(const int16_t* w, ptrdiff_t outputs, ptrdiff_t kernel, ptrdiff_t channels, int threads);

  ptrdiff_t outputs() const { return outputs_; }
  ptrdiff_t kernel() const { return kernel_; }
  ptrdiff_t channels() const { return channels_; }
  ptrdiff_t padded_channels() const { return (channels_ + 1) / 2 * 2; }
  const int16_t* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(int16_t* p) const;
  };
  ptrdiff_t outputs_, kernel_, channels_;
  std::unique_ptr<int16_t[], Free> data_;
};

}  // namespace mlic::exact
