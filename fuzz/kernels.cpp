// The exact arithmetic: every instruction set of the machine computes the same bits, on one thread
// and on eight, in memory that is no larger than it must be.
//
// Input: operation, sizes and flags (8 bytes), seed, then values, repeated as often as needed.
#include <cmath>

#include "exact/constants.h"
#include "exact/dispatch.h"
#include "exact/gdn.h"
#include "exact/ops.h"
#include "exact/weights.h"
#include "passes.h"

using namespace fuzz;
using namespace mlic::exact;

namespace {

constexpr int64_t kLargestSum = INT32_MAX / 4095;

struct Case {
  uint8_t operation, flags;
  ptrdiff_t batch, height, width, channels, outputs, stride;
  int kernel, exponent;
  Noise noise{0};
  const uint8_t* values;
  size_t count;

  ptrdiff_t positions() const { return batch * height * width; }
  // A value of the input, or of noise.
  uint32_t raw() {
    const uint32_t drawn = noise.next();
    return count < 2 || drawn % 4 == 0 ? drawn : drawn ^ values[drawn % count] * 0x01010101u;
  }
  std::unique_ptr<int16_t[]> activations(ptrdiff_t size) {
    auto x = exactly<int16_t>(static_cast<size_t>(size));
    const bool extreme = flags & 1;
    for (ptrdiff_t i = 0; i < size; ++i) {
      x[i] = static_cast<int16_t>(extreme ? raw() % 2 * 8190 - 4095 : raw() % 8191 - 4095);
    }
    return x;
  }
  std::unique_ptr<int16_t[]> weights(ptrdiff_t rows, ptrdiff_t inputs) {
    auto w = exactly<int16_t>(static_cast<size_t>(rows * inputs));
    for (ptrdiff_t o = 0; o < rows; ++o) {
      int64_t left = kLargestSum;
      for (ptrdiff_t i = 0; i < inputs; ++i) {
        const int64_t limit = std::min<int64_t>(kWeightLimit, left / (inputs - i));
        const auto value = static_cast<int64_t>(raw() % static_cast<uint32_t>(2 * limit + 1));
        w[o * inputs + i] = static_cast<int16_t>(value - limit);
        left -= std::abs(w[o * inputs + i]);
      }
    }
    return w;
  }
  // Any bits at all, or numbers of ordinary size.
  std::unique_ptr<float[]> reals(ptrdiff_t size, float limit) {
    auto r = exactly<float>(static_cast<size_t>(size));
    for (ptrdiff_t i = 0; i < size; ++i) {
      const uint32_t bits = raw();
      r[i] = (static_cast<float>(bits % (1 << 21)) / (1 << 20) - 1.0f) * limit;
      if (flags & 2 && bits % 7 == 0) std::memcpy(&r[i], &bits, sizeof bits);
    }
    return r;
  }
};

uint64_t hash_of(const void* data, size_t size, bool of_floats = false) {
  uint64_t hash = 0xcbf29ce484222325;
  const auto* bytes = static_cast<const uint8_t*>(data);
  for (size_t i = 0; i < size; i += 4) {
    uint32_t word = 0;
    std::memcpy(&word, bytes + i, std::min<size_t>(4, size - i));
    if (of_floats && (word & 0x7fffffff) > 0x7f800000) word = 0x7fc00000;  // any NaN
    hash = (hash ^ word) * 0x100000001b3;
  }
  return hash;
}

uint64_t compute(Case c, const Runner& run) {
  const auto size = [](ptrdiff_t n) { return static_cast<size_t>(n); };
  const ptrdiff_t n = c.positions();
  const float unit = std::ldexp(1.0f, -c.exponent);
  const float scale = std::ldexp(1.0f, 9 - c.exponent % 8);
  switch (c.operation % 7) {
    case 0: {  // convolution
      const auto x = c.activations(n * c.stride);
      const auto w = c.weights(c.outputs, c.kernel * c.kernel * c.channels);
      const Weights weights(w.get(), c.outputs, c.kernel, c.channels, run.kernels->layout, 1);
      const auto scales = c.reals(c.outputs, 1e-4f), bias = c.reals(c.outputs, 2.0f);
      const auto at = static_cast<Positions>(c.width % 2 ? -1 : c.flags / 8 % 3 - 1);
      const ptrdiff_t positions = at == Positions::kAll ? n : n / 2;
      const auto residual = c.reals(positions * c.outputs, 9.0f);
      const Act act{x.get(), c.batch, c.height, c.width, c.channels, c.stride};
      const auto real = exactly<float>(size(positions * c.outputs));
      const auto out = exactly<int16_t>(size(positions * c.outputs));
      Conv conv{};
      conv.outputs = static_cast<int>(c.outputs);
      conv.bias = bias.get();
      conv.gelu = c.flags & 4;
      conv.residual = c.flags & 64 ? residual.get() : nullptr;
      conv.out_float = c.flags & 128 ? real.get() : nullptr;
      conv.out_act = c.flags & 128 ? nullptr : out.get();
      conv.out_scale = scale;
      run.conv({{act, &weights, scales.get(), unit}}, at, positions, conv);
      return c.flags & 128 ? hash_of(real.get(), 4 * size(positions * c.outputs), true)
                           : hash_of(out.get(), 2 * size(positions * c.outputs));
    }
    case 1: {  // depthwise
      const auto x = c.activations(n * c.stride);
      const auto w = c.weights(9, c.channels);
      const auto scales = c.reals(c.channels, 1e-4f), bias = c.reals(c.channels, 2.0f);
      const auto out = exactly<int16_t>(size(n * c.channels));
      Depthwise d{};
      d.x = x.get();
      d.position_stride = c.stride;
      d.height = c.height;
      d.width = c.width;
      d.channels = c.channels;
      d.bias = bias.get();
      d.scales = scales.get();
      d.unit = unit;
      d.gelu = c.flags & 4;
      d.out_scale = scale;
      run.depthwise(w.get(), c.batch, d, out.get());
      return hash_of(out.get(), 2 * size(n * c.channels));
    }
    case 2: {  // norm
      const auto x = c.activations(n * c.stride);
      const auto gain = c.reals(c.channels, 3.0f), bias = c.reals(c.channels, 2.0f);
      const auto out = exactly<int16_t>(size(n * c.channels));
      run.layer_norm(
          {x.get(), c.stride, c.channels, gain.get(), bias.get(), 0.25f, out.get(), scale}, n);
      return hash_of(out.get(), 2 * size(n * c.channels));
    }
    case 3: {  // quantise, and the table of a scale
      const auto r = c.reals(n * c.channels, c.flags & 4 ? 9000.0f : 9.0f);
      const auto out = exactly<int16_t>(size(n * c.channels));
      run.quantise(r.get(), scale, out.get(), n * c.channels);
      const auto bounds = exactly<float>(63);
      for (int i = 0; i < 63; ++i) bounds[i] = 0.11f * static_cast<float>(i * i + 1);
      const auto indexes = exactly<uint8_t>(size(n * c.channels));
      run.scale_indexes(r.get(), c.channels, n, c.channels, bounds.get(), 63, indexes.get());
      return hash_of(out.get(), 2 * size(n * c.channels)) ^
             hash_of(indexes.get(), size(n * c.channels));
    }
    case 6: {  // GDN
      const auto r = c.reals(n * c.channels, 300.0f), skip = c.reals(n * c.channels, 50.0f);
      const auto gamma = c.weights(c.channels, c.channels);
      for (ptrdiff_t i = 0; i < c.channels * c.channels; ++i) {
        gamma[i] = static_cast<int16_t>(std::abs(gamma[i]));
      }
      const Weights weights(gamma.get(), c.channels, 1, c.channels, run.kernels->layout, 1);
      const auto beta = c.reals(c.channels, 2.0f), scales = c.reals(c.channels, 1e-4f);
      const bool spread = c.height % 2 == 0 && c.width % 2 == 0 && c.flags & 16;
      const auto out = exactly<int16_t>(size(n * c.channels));
      gdn(run, {beta.get(), &weights, scales.get(), 64.0f, (c.flags & 8) != 0, scale}, r.get(),
          skip.get(), spread, c.batch * c.height, c.width, out.get());
      return hash_of(out.get(), 2 * size(n * c.channels));
    }
    default: {  // attention over positions
      const int heads = 1 + c.flags / 8 % 2;
      const ptrdiff_t dim = heads * (1 + (c.channels - 1) % kMaxDepth);
      const auto qkv = c.activations(n * 3 * dim);
      const auto part = [&](ptrdiff_t i) {
        return Act{qkv.get() + i * dim, c.batch, c.height, c.width, dim, 3 * dim};
      };
      const auto out = exactly<int16_t>(size(n * dim));
      if (c.operation % 7 == 4) {
        run.linear_attention(part(0), part(1), part(2), heads, unit, unit, c.exponent, scale,
                             out.get());
      } else {
        run.softmax_attention(part(0), part(1), part(2), heads, c.flags & 4, unit * unit, unit,
                              scale, out.get());
      }
      return hash_of(out.get(), 2 * size(n * dim));
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes(data, size);
  Case c{};
  c.operation = bytes.byte();
  c.flags = bytes.byte();
  c.batch = 1 + bytes.byte() % 2;
  c.height = 1 + bytes.byte() % 12;
  c.width = 1 + bytes.byte() % 20;
  c.channels = 1 + bytes.byte() % 70;
  c.outputs = 1 + bytes.byte() % 70;
  const uint8_t more = bytes.byte();
  c.kernel = 1 + 2 * (more % 3);
  if (c.channels % kWinogradChannels == 0) {
    c.height = 1 + c.height % 6;
    c.width = 1 + c.width % 8;
  } else if (c.channels > 24) {
    c.kernel = 1;
  }
  c.stride = c.channels + more / 16 % 4;
  c.exponent = more % 16;
  c.noise = Noise(bytes.word());
  c.values = bytes.data();
  c.count = bytes.left();
  const uint64_t expected = compute(c, {&kernels_for("scalar"), 1});
  for (const std::string& name : instruction_sets()) {
    for (const int threads : {1, 8}) {
      if (compute(c, {&kernels_for(name), threads}) != expected) {
        fail(name + " differs, on " + std::to_string(threads) + " threads");
      }
    }
  }
  return 0;
}
