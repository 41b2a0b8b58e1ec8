// Runs the kernels of the exact arithmetic and the range coders on integers of a generator, typical
// and extreme ones, and prints a hash of every result. The lines are the same on every machine: run
// on another architecture, under an emulator perhaps, they show that it computes the same bits.
//
// Each kernel runs on all instruction sets of the machine, which must agree with the plain C++ ones
// before a line is printed. NaN has several patterns of bits; it is hashed as one.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "exact/blocks.h"
#include "exact/dispatch.h"
#include "exact/gdn.h"
#include "exact/ops.h"
#include "exact/weights.h"
#include "rans/compressai.h"
#include "rans/decoder.h"
#include "rans/encoder.h"
#include "rans/errors.h"
#include "rans/tables.h"

namespace {

using namespace mlic::exact;
namespace rans = mlic::rans;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
// What a sum of magnitudes of weights may be, so that products with activations fit int32.
constexpr int64_t kLargestSum = std::numeric_limits<int32_t>::max() / 4095;

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::exit(1);
}

// ---- Numbers ----

// SplitMix64.
class Generator {
 public:
  explicit Generator(uint64_t seed) : state_(seed) {}

  uint64_t bits() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
  // In low .. high.
  int64_t integer(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(bits() % static_cast<uint64_t>(high - low + 1));
  }
  // In -limit .. limit, on a grid that float holds.
  float real(float limit) {
    return static_cast<float>(integer(-(1 << 20), 1 << 20)) * limit / (1 << 20);
  }

  std::vector<float> reals(ptrdiff_t count, float limit) {
    std::vector<float> values;
    for (ptrdiff_t i = 0; i < count; ++i) values.push_back(real(limit));
    return values;
  }
  // Activations, or their two ends alone.
  std::vector<int16_t> activations(ptrdiff_t count, bool extreme = false) {
    std::vector<int16_t> values;
    for (ptrdiff_t i = 0; i < count; ++i) {
      const int64_t value = extreme ? 8190 * integer(0, 1) - 4095 : integer(-4095, 4095);
      values.push_back(static_cast<int16_t>(value));
    }
    return values;
  }
  // [outputs, inputs], as large as they may be.
  std::vector<int16_t> weights(ptrdiff_t outputs, ptrdiff_t inputs) {
    std::vector<int16_t> values;
    for (ptrdiff_t o = 0; o < outputs; ++o) {
      int64_t left = kLargestSum;
      for (ptrdiff_t i = 0; i < inputs; ++i) {
        const int64_t limit = std::min<int64_t>(16383, left / (inputs - i));
        values.push_back(static_cast<int16_t>(integer(-limit, limit)));
        left -= std::abs(values.back());
      }
    }
    return values;
  }

 private:
  uint64_t state_;
};

// What a case gives, as 32-bit or narrower integers in an order of bytes of its own.
class Result {
 public:
  template <class T>
  void add(const std::vector<T>& values) {
    for (const T& value : values) {
      if constexpr (std::is_same_v<T, float>) {
        uint32_t bits = 0x7fc00000;
        if (value == value) std::memcpy(&bits, &value, sizeof bits);
        add(bits);
      } else {
        add(static_cast<uint32_t>(value));
      }
    }
  }
  void add(uint32_t value) {
    for (int shift = 0; shift < 32; shift += 8) {
      hash_ = (hash_ ^ (value >> shift & 0xff)) * 0x100000001b3;  // FNV-1a
    }
  }
  uint64_t hash() const { return hash_; }

 private:
  uint64_t hash_ = 0xcbf29ce484222325;
};

void print(const std::string& name, const Result& result) {
  std::printf("%s %016llx\n", name.c_str(), static_cast<unsigned long long>(result.hash()));
}

// work(runner, result) on every instruction set, with one thread and with eight.
template <class Work>
void check(const std::string& name, const Work& work) {
  const auto run = [&](const std::string& isa, int threads) {
    Result result;
    work(Runner{&kernels_for(isa), threads}, result);
    return result;
  };
  const Result expected = run("scalar", 1);
  for (const std::string& isa : instruction_sets()) {
    for (const int threads : {1, 8}) {
      if (run(isa, threads).hash() != expected.hash()) fail(name + ": " + isa + " differs");
    }
  }
  print(name, expected);
}

struct Size {
  ptrdiff_t batch, height, width;

  ptrdiff_t positions() const { return batch * height * width; }
  std::string text() const {
    return std::to_string(batch) + "x" + std::to_string(height) + "x" + std::to_string(width);
  }
};

const Size kSizes[] = {{1, 1, 2}, {2, 5, 6}, {1, 12, 16}};

Act act_of(const std::vector<int16_t>& data, const Size& size, ptrdiff_t channels,
           ptrdiff_t stride = 0) {
  return {data.data(), size.batch, size.height, size.width, channels, stride ? stride : channels};
}

// ---- Kernels ----

struct ConvCase {
  int kernel;
  std::vector<ptrdiff_t> channels;  // of the inputs
  ptrdiff_t outputs;
};

const ConvCase kConvs[] = {
    {1, {6, 64}, 100}, {1, {5}, 3},   {1, {192}, 48},  {3, {8, 5}, 37},
    {3, {32}, 64},     {3, {96}, 40}, {5, {3, 2}, 17}, {5, {96, 64}, 36},
};

void check_conv(const ConvCase& shape, const Size& size, bool extreme) {
  Generator g(1);
  std::vector<std::vector<int16_t>> data;
  std::vector<std::vector<int16_t>> weights;
  std::vector<std::vector<float>> scales;
  for (const ptrdiff_t channels : shape.channels) {
    data.push_back(g.activations(size.positions() * (channels + 3), extreme));
    weights.push_back(g.weights(shape.outputs, shape.kernel * shape.kernel * channels));
    scales.push_back(g.reals(shape.outputs, 1e-4f));
  }
  const auto bias = g.reals(shape.outputs, 2.0f);
  const auto partial = g.reals(size.positions() * shape.outputs, 4.0f);
  const auto residual = g.reals(size.positions() * shape.outputs, 4.0f);
  const auto residual_act = g.activations(size.positions() * (shape.outputs + 3));
  std::string name = "conv " + std::to_string(shape.kernel) + " " + std::to_string(shape.outputs) +
                     " " + size.text() + (extreme ? " extreme" : "");
  for (const Positions at :
       {Positions::kAll, Positions::kNonAnchors, Positions::kAnchors, Positions::kEven}) {
    if (at == Positions::kEven && size.height % 2 != 0) continue;
    const ptrdiff_t part = at == Positions::kAll ? 1 : at == Positions::kEven ? 4 : 2;
    const ptrdiff_t positions = size.positions() / part;
    check(name + " at " + std::to_string(static_cast<int>(at)), [&](Runner run, Result& result) {
      std::vector<std::unique_ptr<Weights>> packed;
      std::vector<Input> inputs;
      for (size_t i = 0; i < data.size(); ++i) {
        const Act x = act_of(data[i], size, shape.channels[i], shape.channels[i] + 3);
        packed.push_back(std::make_unique<Weights>(weights[i].data(), shape.outputs, shape.kernel,
                                                   shape.channels[i], run.kernels->layout, 1));
        inputs.push_back({x, packed[i].get(), scales[i].data(), std::ldexp(1.0f, -8)});
      }
      std::vector<float> real(static_cast<size_t>(positions * shape.outputs));
      std::vector<int16_t> act(real.size());
      for (const bool gelu : {false, true}) {
        Conv c{};
        c.outputs = static_cast<int>(shape.outputs);
        c.bias = bias.data();
        c.gelu = gelu;
        c.out_float = real.data();
        run.conv(inputs, at, positions, c);
        result.add(real);
        c.out_float = nullptr;
        c.out_act = act.data();
        c.out_scale = std::ldexp(1.0f, 9);
        run.conv(inputs, at, positions, c);
        result.add(act);
        c.bias = nullptr;
        c.partial = partial.data();
        c.residual = residual.data();
        run.conv(inputs, at, positions, c);
        result.add(act);
        c.residual = nullptr;
        c.residual_act = residual_act.data();
        c.residual_stride = shape.outputs + 3;
        c.residual_scale = std::ldexp(1.0f, -7);
        run.conv(inputs, at, positions, c);
        result.add(act);
      }
    });
  }
}

// Every float that there is no other way to get into a layer.
const std::vector<float> kOddReals = {kNan,    kInfinity, -kInfinity, 3e38f, -3e38f, 1e-45f,
                                      -1e-40f, -0.0f,     0.0f,       7.5f,  2.5f,   -2.5f,
                                      4096.5f, 254.5f,    255.6f,     -0.6f, 1e9f,   0.11f};

std::vector<float> odd_reals(ptrdiff_t count) {
  std::vector<float> values;
  for (ptrdiff_t i = 0; i < count; ++i) {
    values.push_back(kOddReals[static_cast<size_t>(i) % kOddReals.size()]);
  }
  return values;
}

void check_odd_reals() {
  const auto r = odd_reals(37);
  check("odd reals", [&](Runner run, Result& result) {
    std::vector<int16_t> act(r.size());
    run.quantise(r.data(), 1.0f, act.data(), static_cast<ptrdiff_t>(r.size()));
    result.add(act);
    for (const bool gelu : {false, true}) {
      Conv c{};
      c.outputs = static_cast<int>(r.size());
      c.partial = r.data();
      c.gelu = gelu;
      c.out_act = act.data();
      c.out_scale = 4.0f;
      const ptrdiff_t corner = 0;
      c.corners = &corner;
      c.rows = 1;
      const int panels = panel_count(run.kernels->layout, (c.outputs + kGroup - 1) / kGroup);
      conv_panels(*run.kernels, c, 0, panels, 0, 1);
      result.add(act);
    }
    std::vector<uint8_t> bytes(r.size());
    run.kernels->to_bytes(r.data(), bytes.data(), static_cast<ptrdiff_t>(r.size()));
    result.add(bytes);
    const auto zeros = std::vector<float>(r.size());
    std::vector<int32_t> symbols(r.size());
    run.kernels->symbols(r.data(), zeros.data(), symbols.data(), static_cast<ptrdiff_t>(r.size()));
    result.add(symbols);
    const std::vector<float> bounds = {-1.0f, 0.11f, 0.5f, 2.5f, 7.5f, 256.0f, 4096.0f};
    run.kernels->scale_indexes(r.data(), bounds.data(), static_cast<int>(bounds.size()),
                               bytes.data(), static_cast<ptrdiff_t>(r.size()));
    result.add(bytes);
    auto y = zeros;
    run.kernels->add_half_tanh(r.data(), y.data(), static_cast<ptrdiff_t>(r.size()));
    result.add(y);
    std::vector<int16_t> ratios(r.size());
    run.kernels->quantise_ratio(r.data(), 3.0f, 0.5f, 64.0f, ratios.data(),
                                static_cast<ptrdiff_t>(r.size()));
    result.add(ratios);
  });
}

void check_gdn(ptrdiff_t channels, const Size& size) {
  Generator g(9);
  const ptrdiff_t count = size.positions() * channels;
  auto r = g.reals(count, 300.0f);
  for (size_t i = 0; i < r.size(); i += 7) r[i] *= 1e-3f;
  auto gamma = g.weights(channels, channels);
  for (int16_t& weight : gamma) weight = static_cast<int16_t>(std::abs(weight));
  auto beta = g.reals(channels, 2.0f);
  for (float& value : beta) value = std::fabs(value) + 1e-6f;
  const std::vector<float> scales(static_cast<size_t>(channels), 1e-4f);
  const auto skip = g.reals(count, 50.0f);
  check("gdn " + std::to_string(channels) + " " + size.text(), [&](Runner run, Result& result) {
    const Weights weights(gamma.data(), channels, 1, channels, run.kernels->layout, run.threads);
    std::vector<int16_t> act(r.size());
    for (const bool inverse : {false, true}) {
      for (const bool spread : {false, true}) {
        if (spread && size.height % 2 != 0) continue;
        const Gdn how{beta.data(), &weights, scales.data(), 64.0f, inverse, 4.0f};
        gdn(run, how, r.data(), skip.data(), spread, size.batch * size.height, size.width,
            act.data());
        result.add(act);
      }
    }
  });
}

void check_channels(ptrdiff_t channels, const Size& size, bool extreme) {
  Generator g(2);
  const auto x = g.activations(size.positions() * (channels + 1), extreme);
  const auto w = g.weights(channels, 9);
  std::vector<int16_t> taps(w.size());  // [3, 3, channels]
  for (ptrdiff_t i = 0; i < 9 * channels; ++i) {
    taps[static_cast<size_t>(i)] = w[static_cast<size_t>(i % channels * 9 + i / channels)];
  }
  const auto scales = g.reals(channels, 1e-4f), bias = g.reals(channels, 2.0f);
  const auto gain = g.reals(channels, 3.0f);
  const auto reals = g.reals(size.positions() * channels, 6000.0f);
  const std::string name =
      std::to_string(channels) + " " + size.text() + (extreme ? " extreme" : "");
  std::vector<int16_t> act(static_cast<size_t>(size.positions() * channels));
  for (const bool gelu : {false, true}) {
    check("depthwise " + name + (gelu ? " gelu" : ""), [&](Runner run, Result& result) {
      Depthwise d{};
      d.x = x.data();
      d.position_stride = channels + 1;
      d.height = size.height;
      d.width = size.width;
      d.channels = channels;
      d.bias = bias.data();
      d.scales = scales.data();
      d.unit = std::ldexp(1.0f, -6);
      d.gelu = gelu;
      d.out_scale = 256.0f;
      run.depthwise(taps.data(), size.batch, d, act.data());
      result.add(act);
    });
  }
  check("layer norm " + name, [&](Runner run, Result& result) {
    run.layer_norm(
        {x.data(), channels + 1, channels, gain.data(), bias.data(), 0.25f, act.data(), 512.0f},
        size.positions());
    result.add(act);
  });
  check("quantise " + name, [&](Runner run, Result& result) {
    run.quantise(reals.data(), 0.75f, act.data(), static_cast<ptrdiff_t>(act.size()));
    result.add(act);
  });
}

void check_latents(ptrdiff_t channels, const Size& size) {
  Generator g(3);
  const ptrdiff_t half = size.positions() / 2 * channels;
  const auto y = g.reals(2 * half, 40.0f), means = g.reals(half, 20.0f), r = g.reals(half, 6.0f);
  const auto x = g.activations(2 * half);
  std::vector<float> scales, bounds;
  for (int i = 0; i < 63; ++i) bounds.push_back(0.11f * static_cast<float>(i * i + 1));
  for (ptrdiff_t i = 0; i < half; ++i) {
    scales.push_back(std::fabs(g.real(i % 3 == 0 ? 300.0f : 3.0f)));
  }
  const std::string name = std::to_string(channels) + " " + size.text();
  const auto size_of = [](ptrdiff_t n) { return static_cast<size_t>(n); };
  for (const Positions at : {Positions::kNonAnchors, Positions::kAnchors}) {
    check("latents " + name + " at " + std::to_string(static_cast<int>(at)), [&](Runner run,
                                                                                 Result& result) {
      const ptrdiff_t rows = size.batch * size.height;
      auto decoded = y;
      const Latents latents{decoded.data(), rows, size.height, size.width, channels, channels, at};
      std::vector<uint8_t> indexes(size_of(half));
      run.scale_indexes(scales.data(), channels, half / channels, channels, bounds.data(), 63,
                        indexes.data());
      result.add(indexes);
      std::vector<int32_t> symbols(size_of(half));
      run.symbols(latents, means.data(), channels, symbols.data());
      result.add(symbols);
      run.decoded(symbols.data(), means.data(), channels, at == Positions::kAnchors, latents);
      result.add(decoded);
      run.add_half_tanh(r.data(), at, rows, size.height, size.width, channels, decoded.data());
      result.add(decoded);
      std::vector<int16_t> squeezed(size_of(half)), whole(size_of(2 * half));
      run.colour(act_of(x, size, channels), at, size.width, true, squeezed.data());
      result.add(squeezed);
      const Size narrow{size.batch, size.height, size.width / 2};
      run.colour(act_of(squeezed, narrow, channels), at, size.width, false, whole.data());
      result.add(whole);
    });
  }
}

void check_attention(ptrdiff_t depth, int heads, const Size& size, bool extreme) {
  Generator g(4);
  const ptrdiff_t dim = depth * heads;
  const auto qkv = g.activations(size.positions() * 3 * dim, extreme);
  const auto bias = g.reals(ptrdiff_t{heads} * kTokens * kTokens, 2.0f);
  const Act q = act_of(qkv, size, dim, 3 * dim);
  Act k = q, v = q;
  k.data += dim;
  v.data += 2 * dim;
  std::vector<int16_t> out(static_cast<size_t>(size.positions() * dim));
  const std::string name = std::to_string(depth) + " " + std::to_string(heads) + " " + size.text() +
                           (extreme ? " extreme" : "");
  // The two ends of activations over few logits, and many logits of about the same size.
  for (const int exponent : {8, 13}) {
    const std::string text = name + " 2^-" + std::to_string(exponent);
    const float unit = std::ldexp(1.0f, -exponent);
    check("linear attention " + text, [&](Runner run, Result& result) {
      run.linear_attention(q, k, v, heads, unit, unit, exponent, 512.0f, out.data());
      result.add(out);
    });
    for (const bool exclude : {false, true}) {
      check("softmax attention " + text + (exclude ? " exclude" : ""),
            [&](Runner run, Result& result) {
              run.softmax_attention(q, k, v, heads, exclude, 0.25f * unit * unit, unit, 512.0f,
                                    out.data());
              result.add(out);
            });
    }
    if (depth <= 32) {
      check("window attention " + text, [&](Runner run, Result& result) {
        std::vector<int16_t> windows(static_cast<size_t>(size.positions() / 2 * kTokens * dim));
        WindowAttention a{};
        a.heads = heads;
        a.logit_scale = 0.25f * unit * unit;
        a.value_scale = unit;
        a.out = windows.data();
        a.out_scale = 512.0f;
        run.window_attention(act_of(qkv, size, 3 * dim), bias.data(), a);
        result.add(windows);
      });
    }
  }
}

void check_blocks(ptrdiff_t channels, const Size& size) {
  Generator g(5);
  const auto pointwise = [&](Layout layout, ptrdiff_t inputs, ptrdiff_t outputs, float scale) {
    const auto w = g.weights(outputs, inputs);
    return Pointwise{std::make_shared<Weights>(w.data(), outputs, 1, inputs, layout, 1),
                     {g.reals(outputs, 1.0f), g.reals(outputs, scale), 1.0f / 16, 256.0f}};
  };
  const auto block = [&](Layout layout) {
    MixingBlock block;
    const auto taps = g.weights(9, channels);
    block.mix_in = pointwise(layout, channels, channels, 1e-5f);
    block.taps = depthwise_taps(taps.data(), channels);
    block.depthwise = {g.reals(channels, 1.0f), g.reals(channels, 1e-4f), 1.0f / 16, 256.0f};
    block.mix_out = pointwise(layout, channels, channels, 1e-4f);
    block.expand = pointwise(layout, channels, 2 * channels, 1e-5f);
    block.contract = pointwise(layout, 2 * channels, channels, 1e-4f);
    block.in_scale = 8.0f;
    return block;
  };
  check("mixing blocks " + std::to_string(channels) + " " + size.text(), [&](Runner run,
                                                                             Result& result) {
    g = Generator(5);
    const MixingBlock first = block(run.kernels->layout);
    const MixingBlock second = block(run.kernels->layout);
    auto r = g.reals(size.positions() * channels, 500.0f);
    mixing_blocks(run, {&first, &second}, size.batch, size.height, size.width, channels, r.data());
    result.add(r);
  });
  std::vector<uint8_t> pixels(static_cast<size_t>(size.positions() * 192));
  for (uint8_t& pixel : pixels) pixel = static_cast<uint8_t>(g.bits());
  const auto real = g.reals(size.positions() * 192, 300.0f);
  for (const ptrdiff_t side : {ptrdiff_t{1}, kBlock}) {
    const Blocks blocks{size.batch, size.height, size.width, side};
    const auto count = static_cast<size_t>(size.positions() * blocks.size());
    check("pixels in blocks of " + std::to_string(side) + " " + size.text(),
          [&](Runner run, Result& result) {
            std::vector<int16_t> vectors(count);
            to_blocks(run, pixels.data(), blocks, vectors.data());
            result.add(vectors);
            std::vector<uint8_t> images(count);
            to_pixels(run, real.data(), blocks, images.data());
            result.add(images);
          });
  }
}

// ---- Range coders ----

// Tables whose symbols are about as wide as their number says.
std::shared_ptr<rans::Tables> make_tables(Generator& g, size_t count) {
  std::vector<uint16_t> frequencies;
  std::vector<int32_t> sizes, minima;
  std::vector<uint8_t> bits;
  for (size_t t = 0; t < count; ++t) {
    const uint8_t precision = t % 3 == 2 ? 14 : 16;
    const auto size = static_cast<int32_t>(2 + g.integer(0, 3) + static_cast<int64_t>(t * t));
    int64_t left = int64_t{1} << precision;
    for (int32_t i = 0; i < size; ++i) {
      const int64_t others = size - 1 - i;
      const int64_t f =
          others == 0 ? left
                      : g.integer(1, std::max<int64_t>(1, 2 * (left - others) / (others + 2)));
      frequencies.push_back(static_cast<uint16_t>(f));
      left -= f;
    }
    sizes.push_back(size);
    minima.push_back(-size / 2);
    bits.push_back(precision);
  }
  return std::make_shared<rans::Tables>(frequencies.data(), frequencies.size(), sizes.data(),
                                        minima.data(), bits.data(), count);
}

// Passes of several sizes, escapes and whole ranges of int32 among them; then damaged payloads.
void check_coder(uint32_t lanes, bool zeros) {
  Generator g(lanes);
  constexpr size_t kTables = 40;
  const auto tables = make_tables(g, kTables);
  std::vector<std::vector<int32_t>> symbols;
  std::vector<std::vector<uint8_t>> indexes;
  rans::Encoder encoder(tables, lanes);
  for (const int64_t count : {1, 31, 64, 5000}) {
    symbols.emplace_back();
    indexes.emplace_back();
    for (int64_t i = 0; i < count; ++i) {
      const int64_t table = g.integer(0, kTables - 1);
      const int64_t reach =
          i % 500 == 499 ? std::numeric_limits<int32_t>::max() : table * table / 2;
      const int64_t symbol = table == 0 && zeros ? 0 : g.integer(-reach, reach);
      symbols.back().push_back(static_cast<int32_t>(symbol));
      indexes.back().push_back(static_cast<uint8_t>(table));
    }
    encoder.encode(symbols.back().data(), indexes.back().data(), symbols.back().size());
  }
  const std::string name = "range coder " + std::to_string(lanes) + (zeros ? " zeros" : "");
  const uint32_t digest = 0x89abcdef;
  const std::vector<uint8_t> payload = encoder.finish(digest);
  const auto decode = [&](const std::vector<uint8_t>& bytes, Result& result) {
    rans::Decoder decoder(tables, bytes.data(), bytes.size(), encoder.lanes());
    for (const auto& pass : indexes) {
      std::vector<int32_t> decoded(pass.size());
      decoder.decode(pass.data(), pass.size(), decoded.data());
      result.add(decoded);
    }
    result.add(decoder.finish());
  };
  Result result, found, expected;
  result.add(payload);
  result.add(encoder.lanes());
  decode(payload, found);
  for (const auto& pass : symbols) expected.add(pass);
  expected.add(digest);
  if (found.hash() != expected.hash()) fail(name + ": other symbols come back");
  for (int i = 0; i < 200; ++i) {
    auto damaged = payload;
    for (int64_t n = g.integer(1, 3); n > 0; --n) {
      damaged[static_cast<size_t>(g.integer(0, static_cast<int64_t>(damaged.size()) - 1))] ^=
          static_cast<uint8_t>(g.integer(1, 255));
    }
    if (i % 4 == 0)
      damaged.resize(static_cast<size_t>(g.integer(0, static_cast<int64_t>(payload.size()))));
    try {
      decode(damaged, result);
      result.add(1);
    } catch (const rans::CorruptStream& error) {
      const std::string text = error.what();
      result.add(std::vector<uint8_t>(text.begin(), text.end()));
    }
  }
  print(name, result);
}

void check_compressai() {
  Generator g(6);
  std::vector<int32_t> rows, sizes, offsets;
  for (int32_t t = 0; t < 20; ++t) {
    const int32_t size = 3 + 2 * t;
    for (int32_t i = 0; i < size; ++i) rows.push_back(i * 65536 / (size - 1));
    sizes.push_back(size);
    offsets.push_back(-t);
  }
  const rans::compressai::Cdfs cdfs(rows, sizes, offsets);
  std::vector<int32_t> symbols, indexes, decoded(3000);
  for (int i = 0; i < 3000; ++i) {
    indexes.push_back(static_cast<int32_t>(g.integer(0, 19)));
    symbols.push_back(static_cast<int32_t>(g.integer(-25, 25)) * (i % 100 == 0 ? 1 << 24 : 1));
  }
  rans::compressai::Encoder encoder;
  encoder.encode(symbols.data(), indexes.data(), symbols.size(), cdfs);
  const std::vector<uint8_t> stream = encoder.flush();
  rans::compressai::Decoder decoder(stream.data(), stream.size());
  decoder.decode(indexes.data(), indexes.size(), cdfs, decoded.data());
  if (decoded != symbols) fail("compressai: other symbols come back");
  Result result;
  result.add(stream);
  print("compressai", result);
}

}  // namespace

int main() {
  std::string names;
  for (const std::string& isa : instruction_sets()) names += " " + isa;
  std::fprintf(stderr, "instruction sets:%s\n", names.c_str());
  for (const bool extreme : {false, true}) {
    for (const Size& size : kSizes) {
      for (const ConvCase& shape : kConvs) check_conv(shape, size, extreme);
      for (const ptrdiff_t channels : {5, 16, 37}) check_channels(channels, size, extreme);
      check_attention(16, 2, size, extreme);
      check_attention(5, 2, size, extreme);
      check_attention(32, 3, size, extreme);
      check_attention(64, 1, size, extreme);
    }
  }
  check_odd_reals();
  for (const Size& size : kSizes) {
    for (const ptrdiff_t channels : {1, 7, 32}) check_latents(channels, size);
    for (const ptrdiff_t channels : {1, 7, 32}) check_gdn(channels, size);
    check_blocks(34, size);
  }
  check_blocks(64, {1, 9, 23});  // more positions than a tile
  for (const uint32_t lanes : {0, 2, 4, 8, 16, 32, 64, 128, 1024}) {
    check_coder(lanes, true);
    check_coder(lanes, false);
  }
  check_compressai();
}
