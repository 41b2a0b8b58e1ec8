// Submodule mlic_fast._C.exact. All arrays are checked here, beside the code that trusts them: one
// that does not fit is a ValueError. The GIL is released around the work, which may be recorded.
#include "exact/bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "exact/arrays.h"
#include "exact/blocks.h"
#include "exact/constants.h"
#include "exact/dispatch.h"
#include "exact/gdn.h"
#include "exact/ops.h"
#include "exact/recording.h"
#include "pool.h"

namespace py = pybind11;
using namespace py::literals;
namespace exact = mlic::exact;
using namespace mlic::arrays;

namespace {

exact::Positions positions_of(int at) {
  require(at >= -1 && at <= 2,
          "positions must be -1 (all), 0 (non-anchors), 1 (anchors) or 2 (even rows and columns)");
  return static_cast<exact::Positions>(at);
}

using Array = std::optional<py::array>;

// Positions of channels, with a stride between them.
struct Reals {
  const float* data;
  py::ssize_t stride, positions, channels;
};

class Kernels {
 public:
  Kernels(const std::string& isa, int threads) : run_{&exact::kernels_for(isa), threads} {
    require(threads >= 1, "threads must be positive");
  }

  void conv(const std::vector<py::array>& inputs,
            const std::vector<std::shared_ptr<exact::Weights>>& weights,
            const std::vector<py::array>& scales, const std::vector<float>& units, int at,
            const Array& bias, const Array& partial, bool gelu, const Array& residual,
            float residual_scale, py::array out, float out_scale) const {
    require(inputs.size() == weights.size() && inputs.size() == scales.size() &&
                inputs.size() == units.size(),
            "inputs, weights, scales and units differ in number");
    require(out.ndim() == 4, "the output must be [B, H, W, O]");
    require(bias.has_value() != partial.has_value(), "either a bias or a partial sum is needed");
    const Shape shape = shape_of(out);
    const py::ssize_t outputs = shape[3];
    require(outputs >= 1 && outputs < 1 << 24, "the output must have channels");
    const exact::Positions positions = positions_of(at);
    const py::ssize_t width = shape[2] * (positions == exact::Positions::kAll ? 1 : 2);
    const py::ssize_t height = shape[1] * (positions == exact::Positions::kEven ? 2 : 1);

    std::vector<ActView> views;
    std::vector<Constant<float>> constant_scales;
    views.reserve(inputs.size());
    constant_scales.reserve(inputs.size());
    std::vector<exact::Input> list;
    for (size_t i = 0; i < inputs.size(); ++i) {
      require(weights[i] != nullptr, "weights are missing");
      views.emplace_back(inputs[i], "an input");
      constant_scales.emplace_back(scales[i], Shape{outputs}, "scales");
      require_shape(inputs[i], {shape[0], height, width, weights[i]->channels()}, "an input");
      require(weights[i]->outputs() == outputs, "weights and output differ in channels");
      require(weights[i]->kernel() == weights[0]->kernel(), "weights differ in kernel size");
      require(weights[i]->layout() == run_.kernels->layout,
              "weights are packed for another instruction set");
      list.push_back({views[i].act(), weights[i].get(), constant_scales[i].data(), units[i]});
    }

    exact::Conv c{};
    c.outputs = static_cast<int>(outputs);
    c.gelu = gelu;
    std::optional<Constant<float>> constant_bias;
    std::optional<Contiguous<float>> start;
    if (bias) {
      c.bias = constant_bias.emplace(*bias, Shape{outputs}, "the bias").data();
    } else {
      c.partial = start.emplace(*partial, shape, "the partial sum").data();
    }
    std::optional<Contiguous<float>> residual_float;
    std::optional<ActView> residual_act;
    if (residual && is_float(*residual)) {
      c.residual = residual_float.emplace(*residual, shape, "the residual").data();
    } else if (residual) {
      require_shape(*residual, shape, "the residual");
      const exact::Act act = residual_act.emplace(*residual, "the residual").act();
      c.residual_act = act.data;
      c.residual_stride = act.stride;
      c.residual_scale = residual_scale;
    }
    if (is_float(out)) {
      c.out_float = output<float>(out, shape, "the output");
    } else {
      c.out_act = output<int16_t>(out, shape, "the output");
      c.out_scale = out_scale;
    }
    const py::ssize_t count = shape[0] * shape[1] * shape[2];
    if (count == 0) return;
    for (const auto& each : weights) keep(each);
    perform([=, run = run_] { run.conv(list, positions, count, c); });
  }

  void depthwise(const py::array& x, const py::array& weights, const py::array& scales, float unit,
                 const py::array& bias, bool gelu, py::array out, float out_scale) const {
    const ActView view(x, "the input");
    const exact::Act act = view.act();
    const Constant<int16_t> w(weights, {3, 3, act.channels}, "weights");
    const Constant<float> s(scales, {act.channels}, "scales");
    const Constant<float> b(bias, {act.channels}, "the bias");
    exact::Depthwise d{};
    d.x = act.data;
    d.position_stride = act.stride;
    d.height = act.height;
    d.width = act.width;
    d.channels = act.channels;
    d.bias = b.data();
    d.scales = s.data();
    d.unit = unit;
    d.gelu = gelu;
    d.out_scale = out_scale;
    int16_t* to = output<int16_t>(out, shape_of(x), "the output");
    const int16_t* taps = w.data();
    perform([=, run = run_] { run.depthwise(taps, act.batch, d, to); });
  }

  void layer_norm(const py::array& x, const py::array& gain, const py::array& bias, float epsilon,
                  py::array out, float out_scale) const {
    const ActView view(x, "the input");
    const exact::Act act = view.act();
    require(act.channels <= 1 << 14, "a norm takes at most 16384 channels");
    const Constant<float> g(gain, {act.channels}, "the gain");
    const Constant<float> b(bias, {act.channels}, "the bias");
    int16_t* to = output<int16_t>(out, shape_of(x), "the output");
    const exact::LayerNorm l{act.data, act.stride, act.channels, g.data(),
                             b.data(), epsilon,    to,           out_scale};
    perform([=, run = run_] { run.layer_norm(l, act.positions()); });
  }

  void window_attention(const py::array& qkv, const py::array& bias, float logit_scale,
                        float value_scale, py::array out, float out_scale) const {
    const ActView view(qkv, "the input");
    const exact::Act act = view.act();
    require(bias.ndim() == 3, "the bias must be [heads, 25, 25]");
    const py::ssize_t heads = bias.shape(0);
    const Constant<float> b(bias, {heads, exact::kTokens, exact::kTokens}, "the bias");
    require_heads(heads, act.channels, 3);
    require(act.width % 2 == 0, "the width must be even");
    exact::WindowAttention a{};
    a.heads = static_cast<int>(heads);
    a.logit_scale = logit_scale;
    a.value_scale = value_scale;
    a.out = output<int16_t>(
        out, {act.batch, act.height, act.width / 2, exact::kTokens * (act.channels / 3)},
        "the output");
    a.out_scale = out_scale;
    const float* table = b.data();
    perform([=, run = run_] { run.window_attention(act, table, a); });
  }

  void linear_attention(const py::array& q, const py::array& k, const py::array& v, int heads,
                        float query_scale, float key_scale, int value_exponent, py::array out,
                        float out_scale) const {
    const ActView q_view(q, "queries"), k_view(k, "keys"), v_view(v, "values");
    const exact::Act queries = q_view.act(), keys = k_view.act(), values = v_view.act();
    require_attention(q, k, v, heads);
    int16_t* to = output<int16_t>(out, shape_of(q), "the output");
    require(value_exponent >= -60 && value_exponent <= 60, "exponents are -60 .. 60");
    perform([=, run = run_] {
      run.linear_attention(queries, keys, values, heads, query_scale, key_scale, value_exponent,
                           out_scale, to);
    });
  }

  void softmax_attention(const py::array& q, const py::array& k, const py::array& v, int heads,
                         bool exclude, float logit_scale, float value_scale, py::array out,
                         float out_scale) const {
    const ActView q_view(q, "queries"), k_view(k, "keys"), v_view(v, "values");
    const exact::Act queries = q_view.act(), keys = k_view.act(), values = v_view.act();
    require_attention(q, k, v, heads);
    if (exclude) require_shape(k, shape_of(q), "keys");
    int16_t* to = output<int16_t>(out, shape_of(q), "the output");
    perform([=, run = run_] {
      run.softmax_attention(queries, keys, values, heads, exclude, logit_scale, value_scale,
                            out_scale, to);
    });
  }

  // Converts between squeezed and other arrays; their widths tell which is which.
  void colour(const py::array& x, int parity, py::array out) const {
    const ActView view(x, "the input");
    const exact::Act act = view.act();
    require(out.ndim() == 4, "the output must be [B, H, W, C]");
    require(parity == 0 || parity == 1, "the parity must be 0 (non-anchors) or 1 (anchors)");
    const py::ssize_t width = std::max(act.width, out.shape(2));
    require(width % 2 == 0, "the width must be even");
    for (const py::ssize_t w : {act.width, out.shape(2)}) {
      require(w == width || 2 * w == width, "widths must be equal, or one half of the other");
    }
    auto* to =
        output<int16_t>(out, {act.batch, act.height, out.shape(2), act.channels}, "the output");
    const bool squeezed = out.shape(2) != width;
    perform([=, run = run_] { run.colour(act, positions_of(parity), width, squeezed, to); });
  }

  // Scales and means [B, H, W/2, C]; integers alike; latents [B, H, W, C].
  void scale_indexes(const py::array& scales, const py::array& bounds, py::array out) const {
    const View<float> view(scales, "scales");
    const Shape half = shape_of(scales);
    const Constant<float> b(bounds, {bounds.size()}, "bounds");
    require(bounds.size() < 256, "there are too many bounds");
    auto* to = output<uint8_t>(out, half, "the output");
    const auto bound_count = static_cast<int>(bounds.size());
    const Reals from = reals_of(view, half);
    const float* bound = b.data();
    perform([=, run = run_] {
      run.scale_indexes(from.data, from.stride, from.positions, from.channels, bound, bound_count,
                        to);
    });
  }

  void symbols(const py::array& y, const py::array& means, int parity, py::array out) const {
    const View<float> view(y, "latents");
    const View<float> m(means, "means");
    const exact::Latents latents =
        latents_of(y, means, parity, const_cast<float*>(view.data()), view.stride());
    const Shape half = shape_of(means);
    auto* to = output<int32_t>(out, half, "the output");
    const float* mean = m.data();
    const py::ssize_t stride = m.stride();
    perform([=, run = run_] { run.symbols(latents, mean, stride, to); });
  }

  void decoded(const py::array& symbols, const py::array& means, int parity, bool clear,
               py::array y) const {
    const View<float> m(means, "means");
    const Shape half = shape_of(means);
    const Contiguous<int32_t> s(symbols, half, "symbols");
    float* to = output<float>(y, shape_of(y), "latents");
    const exact::Latents latents = latents_of(y, means, parity, to, half[3]);
    const int32_t* symbol = s.data();
    const float* mean = m.data();
    const py::ssize_t stride = m.stride();
    perform([=, run = run_] { run.decoded(symbol, mean, stride, clear, latents); });
  }

  // Latents [1, H, W, C]. What gives a number is not recorded.
  uint32_t digest(const py::array& y, uint64_t first) const {
    require(exact::Recording::current() == nullptr, "a digest is a step beside the recorded calls");
    const View<float> view(y, "latents");
    require(y.shape(0) == 1, "the latents must be those of one image");
    const py::ssize_t positions = y.shape(1) * y.shape(2), channels = y.shape(3);
    const py::gil_scoped_release release;
    return run_.digest(view.data(), view.stride(), positions, channels, first);
  }

  void scale(const py::array& r, const py::array& factors, py::array out) const {
    const View<float> view(r, "the input");
    const Shape shape = shape_of(r);
    const Constant<float> f(factors, {shape[3]}, "factors");
    float* to = output<float>(out, shape, "the output");
    const Reals from = reals_of(view, shape);
    const float* factor = f.data();
    perform([=, run = run_] {
      run.scale(from.data, from.stride, from.positions, from.channels, factor, to);
    });
  }

  void quantise(const py::array& r, py::array out, float out_scale) const {
    const Contiguous<float> input(r, shape_of(r), "the input");
    const float* from = input.data();
    int16_t* to = output<int16_t>(out, shape_of(r), "the output");
    const py::ssize_t count = r.size();
    perform([=, run = run_] { run.quantise(from, out_scale, to, count); });
  }

  // Skip [B, H, W, C], or [B, H/2, W/2, 4C] to be spread: channel (2u + v) C + c.
  void gdn(const py::array& r, const std::shared_ptr<exact::Weights>& gamma,
           const py::array& scales, const py::array& beta, const py::array& skip,
           float square_scale, bool inverse, py::array out, float out_scale) const {
    require(r.ndim() == 4, "the input must be [B, H, W, C]");
    require(gamma != nullptr, "weights are missing");
    require(gamma->layout() == run_.kernels->layout,
            "weights are packed for another instruction set");
    const Shape shape = shape_of(r);
    require(gamma->kernel() == 1 && gamma->channels() == shape[3] && gamma->outputs() == shape[3],
            "weights must be 1x1 and have as many inputs and outputs as the input has channels");
    const Contiguous<float> input(r, shape, "the input");
    const Constant<float> s(scales, {shape[3]}, "scales");
    const Constant<float> b(beta, {shape[3]}, "beta");
    const bool spread = shape_of(skip) != shape;
    require(!spread || (shape[1] % 2 == 0 && shape[2] % 2 == 0), "height and width must be even");
    const Contiguous<float> added(
        skip, spread ? Shape{shape[0], shape[1] / 2, shape[2] / 2, 4 * shape[3]} : shape, "skip");
    int16_t* to = output<int16_t>(out, shape, "the output");
    keep(gamma);
    const exact::Gdn g{b.data(), gamma.get(), s.data(), square_scale, inverse, out_scale};
    const float *from = input.data(), *add = added.data();
    const py::ssize_t rows = shape[0] * shape[1], width = shape[2];
    perform([=, run = run_] { exact::gdn(run, g, from, add, spread, rows, width, to); });
  }

  void add_half_tanh(const py::array& r, int parity, py::array y) const {
    require(r.ndim() == 4, "the residual must be [B, H, W/2, C]");
    require(parity == 0 || parity == 1, "the parity must be 0 (non-anchors) or 1 (anchors)");
    const Shape half = shape_of(r);
    const Contiguous<float> input(r, half, "the residual");
    const float* from = input.data();
    float* to = output<float>(y, {half[0], half[1], 2 * half[2], half[3]}, "the latents");
    const py::ssize_t batch = half[0], height = half[1], width = 2 * half[2], channels = half[3];
    perform([=, run = run_] {
      run.add_half_tanh(from, positions_of(parity), batch * height, height, width, channels, to);
    });
  }

  void mixing_blocks(const std::vector<std::shared_ptr<exact::MixingBlock>>& blocks,
                     py::array x) const {
    require(x.ndim() == 4, "x must be [B, H, W, C]");
    require(!blocks.empty(), "there must be blocks");
    std::vector<const exact::MixingBlock*> list;
    for (const auto& block : blocks) {
      require(block != nullptr, "a block is missing");
      require(block->mix_in.weights->channels() == x.shape(3), "blocks and x differ in channels");
      for (const exact::Pointwise* layer :
           {&block->mix_in, &block->mix_out, &block->expand, &block->contract}) {
        require(layer->weights->layout() == run_.kernels->layout,
                "weights are packed for another instruction set");
      }
      keep(block);
      list.push_back(block.get());
    }
    float* to = output<float>(x, shape_of(x), "x");
    const py::ssize_t batch = x.shape(0), height = x.shape(1), width = x.shape(2);
    const py::ssize_t channels = x.shape(3);
    perform(
        [=, run = run_] { exact::mixing_blocks(run, list, batch, height, width, channels, to); });
  }

  // Images [B, 3, sH, sW] <-> [B, H, W, 3ss].
  void to_blocks(const py::array& images, py::array out) const {
    require(images.ndim() == 4 && out.ndim() == 4, "images must be [B, 3, sH, sW]");
    const exact::Blocks blocks = blocks_of(out);
    const Contiguous<uint8_t> input(images, images_of(blocks), "images");
    const uint8_t* from = input.data();
    int16_t* to = output<int16_t>(out, shape_of(out), "the output");
    perform([=, run = run_] { exact::to_blocks(run, from, blocks, to); });
  }

  void to_pixels(const py::array& r, py::array images) const {
    require(r.ndim() == 4, "the input must be [B, H, W, 3ss]");
    const exact::Blocks blocks = blocks_of(r);
    const Contiguous<float> input(r, shape_of(r), "the input");
    const float* from = input.data();
    uint8_t* to = output<uint8_t>(images, images_of(blocks), "images");
    perform([=, run = run_] { exact::to_pixels(run, from, blocks, to); });
  }

  // [B, 2H, 2W, C] -> [B, H, W, 4C], or with `spread` the inverse; both of one type.
  void rearrange_fours(const py::array& x, bool spread, py::array out) const {
    is_float(x) ? rearrange_fours_of<float>(x, spread, out)
                : rearrange_fours_of<int16_t>(x, spread, out);
  }

  int64_t peak(int64_t iterations) const {
    const py::gil_scoped_release release;
    return run_.kernels->peak(iterations);
  }

 private:
  // Weights live as long as calls that are recorded with them.
  template <class T>
  static void keep(const std::shared_ptr<T>& constant) {
    if (auto* recording = exact::Recording::current()) recording->keep(py::cast(constant));
  }

  // Makes a call, and keeps it where this thread records. It captures pointers, sizes, numbers.
  template <class Call>
  void perform(const Call& call) const {
    {
      const py::gil_scoped_release release;
      call();
    }
    if (auto* recording = exact::Recording::current()) recording->add(call);
  }

  static Reals reals_of(const View<float>& view, const Shape& shape) {
    return {view.data(), view.stride(), shape[0] * shape[1] * shape[2], shape[3]};
  }

  // Of an array [B, H, W, 3ss].
  static exact::Blocks blocks_of(const py::array& array) {
    const py::ssize_t side = array.shape(3) == exact::kColours ? 1 : exact::kBlock;
    require(array.shape(3) == exact::kColours * side * side, "blocks have 1 or 8 x 8 pixels");
    return {array.shape(0), array.shape(1), array.shape(2), side};
  }

  static Shape images_of(const exact::Blocks& b) {
    return {b.batch, exact::kColours, b.side * b.height, b.side * b.width};
  }

  template <class T>
  void rearrange_fours_of(const py::array& x, bool spread, py::array& out) const {
    const Shape deep = shape_of(spread ? x : out);
    require(deep.size() == 4 && deep[3] % 4 == 0, "one of the arrays must be [B, H, W, 4C]");
    const py::ssize_t channels = deep[3] / 4;
    const Shape wide = {deep[0], 2 * deep[1], 2 * deep[2], channels};
    const Contiguous<T> input(x, spread ? deep : wide, "the input");
    const T* from = input.data();
    T* to = output<T>(out, spread ? wide : deep, "the output");
    const py::ssize_t batch = deep[0], height = deep[1], width = deep[2];
    const auto bytes = static_cast<py::ssize_t>(channels * sizeof(T));
    perform([=, run = run_] {
      exact::rearrange_fours(run, from, batch, height, width, bytes, spread, to);
    });
  }

  static exact::Latents latents_of(const py::array& y, const py::array& means, int parity,
                                   float* data, py::ssize_t stride) {
    require(parity == 0 || parity == 1, "the parity must be 0 (non-anchors) or 1 (anchors)");
    const Shape half = shape_of(means);
    require_shape(y, {half[0], half[1], 2 * half[2], half[3]}, "latents");
    return {data, half[0] * half[1], half[1], 2 * half[2], half[3], stride, positions_of(parity)};
  }

  static void require_heads(py::ssize_t heads, py::ssize_t channels, py::ssize_t parts) {
    require(heads >= 1 && channels % (parts * heads) == 0,
            "the channels must be a multiple of the heads");
    require(channels / (parts * heads) <= exact::kMaxDepth, "a head takes at most 64 channels");
  }

  static void require_attention(const py::array& q, const py::array& k, const py::array& v,
                                int heads) {
    require_heads(heads, q.shape(3), 1);
    require_shape(v, shape_of(k), "values");
    require(k.shape(0) == q.shape(0) && k.shape(3) == q.shape(3),
            "queries and keys differ in batch or channels");
    require(k.shape(1) * k.shape(2) >= 1, "there must be keys");
  }

  exact::Runner run_;
};

std::shared_ptr<exact::Weights> make_weights(const py::array& w, const std::string& isa,
                                             int threads) {
  require(w.ndim() == 4 && w.shape(1) == w.shape(2) && w.shape(1) % 2 == 1 && w.size() > 0,
          "weights must be [O, k, k, C], k odd");
  require(w.shape(0) < 1 << 24, "there are too many outputs");
  const Constant<int16_t> from(w, shape_of(w), "weights");
  const py::ssize_t outputs = w.shape(0), kernel = w.shape(1), channels = w.shape(3);
  const exact::Layout layout = exact::kernels_for(isa).layout;
  const py::gil_scoped_release release;
  return std::make_shared<exact::Weights>(from.data(), outputs, kernel, channels, layout, threads);
}

exact::Scaling scaling_of(const py::array& bias, const py::array& scales, float unit,
                          float out_scale) {
  const Constant<float> b(bias, {bias.size()}, "the bias");
  const Constant<float> s(scales, {bias.size()}, "scales");
  return {{b.data(), b.data() + bias.size()}, {s.data(), s.data() + bias.size()}, unit, out_scale};
}

exact::Pointwise pointwise_of(const std::shared_ptr<exact::Weights>& weights, const py::array& bias,
                              const py::array& scales, float unit, float out_scale) {
  require(weights != nullptr && weights->kernel() == 1, "weights must be those of a 1x1 layer");
  require(weights->outputs() == bias.size(), "weights and bias differ in channels");
  require(weights->channels() % 2 == 0, "the channels must be even in number");
  return {weights, scaling_of(bias, scales, unit, out_scale)};
}

std::shared_ptr<exact::MixingBlock> make_mixing_block(
    const exact::Pointwise& mix_in, const py::array& taps, const py::array& bias,
    const py::array& scales, float unit, float out_scale, const exact::Pointwise& mix_out,
    const exact::Pointwise& expand, const exact::Pointwise& contract, float in_scale) {
  const py::ssize_t channels = mix_in.weights->channels();
  const auto fits = [](const exact::Pointwise& layer, py::ssize_t inputs, py::ssize_t outputs) {
    require(layer.weights->channels() == inputs && layer.weights->outputs() == outputs,
            "the layers of a block differ in channels");
  };
  fits(mix_in, channels, channels);
  fits(mix_out, channels, channels);
  fits(expand, channels, 2 * channels);
  fits(contract, 2 * channels, channels);
  require_shape(bias, {channels}, "the bias");
  const Constant<int16_t> w(taps, {3, 3, channels}, "taps");
  return std::make_shared<exact::MixingBlock>(exact::MixingBlock{
      mix_in, exact::depthwise_taps(w.data(), channels), scaling_of(bias, scales, unit, out_scale),
      mix_out, expand, contract, in_scale});
}

py::dict constants() {
  py::dict d;
  d["GELU_CLAMP"] = exact::kGeluClamp;
  d["GELU"] = std::vector<float>(std::begin(exact::kGelu), std::end(exact::kGelu));
  d["EXP2"] = std::vector<float>(std::begin(exact::kExp2), std::end(exact::kExp2));
  d["MINUS_LOG2_E"] = exact::kMinusLog2E;
  d["TANH_CLAMP"] = exact::kTanhClamp;
  d["ACTIVATION_LIMIT"] = exact::kActivationLimit;
  d["WEIGHT_LIMIT"] = exact::kWeightLimit;
  d["SYMBOL_LIMIT"] = exact::kSymbolLimit;
  d["SOFTMAX_ONE"] = exact::kSoftmaxOne;
  d["SQUARE_BITS"] = exact::kSquareBits;
  d["WINDOW"] = exact::kWindow;
  d["EXCLUDED_RADIUS"] = exact::kExcludedRadius;
  return d;
}

}  // namespace

void bind_exact(py::module_& parent) {
  auto m = parent.def_submodule(
      "exact", "Kernels of the entropy path; see mlic_fast.engine.cpu.cpu_kernels.");
  m.def("instruction_sets", &exact::instruction_sets);
  m.def("constants", &constants);
  m.def("measure", &mlic::measure, "on"_a);
  m.def("measured", [] {
    const mlic::Times times = mlic::measured();
    return py::make_tuple(times.calls, times.results, times.layouts);
  });

  py::class_<exact::Weights, std::shared_ptr<exact::Weights>>(m, "Weights")
      .def(py::init(&make_weights), "weights"_a, "isa"_a, "threads"_a = 1)
      .def_property_readonly("winograd",
                             [](const exact::Weights& w) { return w.winograd(1) != nullptr; });

  py::class_<exact::Memory, std::shared_ptr<exact::Memory>>(m, "Memory")
      .def(py::init<>())
      .def_property_readonly("bytes", &exact::Memory::bytes)
      .def_property_readonly("chunks", [](const exact::Memory& memory) {
        py::dict sizes;  // by address
        for (const auto& [begin, size] : memory.chunks()) {
          sizes[py::int_(reinterpret_cast<uintptr_t>(begin))] = size;
        }
        return sizes;
      });
  py::class_<exact::Recording>(m, "Recording")
      .def(py::init<std::shared_ptr<exact::Memory>>(), "memory"_a)
      .def_static("current", &exact::Recording::current, py::return_value_policy::reference)
      .def("during", &exact::Recording::during, "work"_a)
      .def("pause", &exact::Recording::pause, "work"_a)
      .def("step", &exact::Recording::step, "work"_a)
      .def("room", &exact::Recording::room, "shape"_a, "dtype"_a)
      .def("check", [](const exact::Recording& r, const py::array& x) { r.check(x.data()); })
      .def("replay", &exact::Recording::replay);

  py::class_<exact::Pointwise>(m, "Pointwise")
      .def(py::init(&pointwise_of), "weights"_a, "bias"_a, "scales"_a, py::kw_only(), "unit"_a,
           "out_scale"_a);
  py::class_<exact::MixingBlock, std::shared_ptr<exact::MixingBlock>>(m, "MixingBlock")
      .def(py::init(&make_mixing_block), "mix_in"_a, "taps"_a, "bias"_a, "scales"_a, "unit"_a,
           "out_scale"_a, "mix_out"_a, "expand"_a, "contract"_a, "in_scale"_a);

  py::class_<Kernels>(m, "Kernels")
      .def(py::init<const std::string&, int>(), "isa"_a, "threads"_a)
      .def("conv", &Kernels::conv, "inputs"_a, "weights"_a, "scales"_a, "units"_a, py::kw_only(),
           "at"_a, "bias"_a, "partial"_a, "gelu"_a, "residual"_a, "residual_scale"_a, "out"_a,
           "out_scale"_a)
      .def("depthwise", &Kernels::depthwise, "x"_a, "weights"_a, "scales"_a, "unit"_a, "bias"_a,
           py::kw_only(), "gelu"_a, "out"_a, "out_scale"_a)
      .def("layer_norm", &Kernels::layer_norm, "x"_a, "gain"_a, "bias"_a, py::kw_only(),
           "epsilon"_a, "out"_a, "out_scale"_a)
      .def("window_attention", &Kernels::window_attention, "qkv"_a, "bias"_a, py::kw_only(),
           "logit_scale"_a, "value_scale"_a, "out"_a, "out_scale"_a)
      .def("linear_attention", &Kernels::linear_attention, "q"_a, "k"_a, "v"_a, py::kw_only(),
           "heads"_a, "query_scale"_a, "key_scale"_a, "value_exponent"_a, "out"_a, "out_scale"_a)
      .def("softmax_attention", &Kernels::softmax_attention, "q"_a, "k"_a, "v"_a, py::kw_only(),
           "heads"_a, "exclude"_a, "logit_scale"_a, "value_scale"_a, "out"_a, "out_scale"_a)
      .def("gdn", &Kernels::gdn, "r"_a, "gamma"_a, "scales"_a, "beta"_a, "skip"_a, py::kw_only(),
           "square_scale"_a, "inverse"_a, "out"_a, "out_scale"_a)
      .def("quantise", &Kernels::quantise, "r"_a, py::kw_only(), "out"_a, "out_scale"_a)
      .def("add_half_tanh", &Kernels::add_half_tanh, "r"_a, "parity"_a, "y"_a)
      .def("colour", &Kernels::colour, "x"_a, "parity"_a, py::kw_only(), "out"_a)
      .def("scale_indexes", &Kernels::scale_indexes, "scales"_a, "bounds"_a, py::kw_only(), "out"_a)
      .def("symbols", &Kernels::symbols, "y"_a, "means"_a, "parity"_a, py::kw_only(), "out"_a)
      .def("decoded", &Kernels::decoded, "symbols"_a, "means"_a, "parity"_a, "clear"_a, "y"_a)
      .def("digest", &Kernels::digest, "y"_a, "first"_a)
      .def("scale", &Kernels::scale, "r"_a, "factors"_a, "out"_a)
      .def("to_blocks", &Kernels::to_blocks, "images"_a, "out"_a)
      .def("to_pixels", &Kernels::to_pixels, "r"_a, "images"_a)
      .def("rearrange_fours", &Kernels::rearrange_fours, "x"_a, "spread"_a, "out"_a)
      .def("mixing_blocks", &Kernels::mixing_blocks, "blocks"_a, "x"_a)
      .def("peak", &Kernels::peak, "iterations"_a);
}
