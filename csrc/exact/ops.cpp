#include "exact/ops.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "exact/constants.h"
#include "pool.h"

namespace mlic::exact {
namespace {

// Not initialised, unlike a vector.
template <class T>
std::unique_ptr<T[]> buffer(ptrdiff_t size) {
  return std::unique_ptr<T[]>(new T[static_cast<size_t>(size)]);
}

ptrdiff_t divide_up(ptrdiff_t a, ptrdiff_t b) { return (a + b - 1) / b; }
ptrdiff_t round_up(ptrdiff_t a, ptrdiff_t b) { return divide_up(a, b) * b; }

// ---- Convolution ----

// Tasks that share out evenly.
ptrdiff_t task_count(int threads) { return threads == 1 ? 1 : ptrdiff_t{8} * threads; }

// Index of the top left tap of every output position in inputs with a border of `border` zeros.
std::vector<ptrdiff_t> corners_of(const Act& x, Positions at, ptrdiff_t border) {
  std::vector<ptrdiff_t> corners;
  corners.reserve(static_cast<size_t>(x.positions()));
  const bool all = at == Positions::kAll;
  const bool even = at == Positions::kEven;
  for (ptrdiff_t row = 0; row < x.batch * x.height; row += even ? 2 : 1) {
    const ptrdiff_t b = row / x.height;
    const ptrdiff_t start = (row + 2 * border * b) * (x.width + 2 * border);
    const ptrdiff_t first = all || even ? 0 : first_column(row, x.height, at);
    for (ptrdiff_t j = first; j < x.width; j += all ? 1 : 2) corners.push_back(start + j);
  }
  return corners;
}

// A row of a copy with zeros around it and channels padded to `channels`.
void copy_padded_row(const Act& x, ptrdiff_t border, ptrdiff_t channels, ptrdiff_t row,
                     int16_t* copy) {
  const ptrdiff_t height = x.height + 2 * border;
  const ptrdiff_t width = x.width + 2 * border;
  const ptrdiff_t y = row % height - border;
  int16_t* to = copy + row * width * channels;
  const auto bytes = [](ptrdiff_t n) { return static_cast<size_t>(n) * sizeof(int16_t); };
  if (y < 0 || y >= x.height) {
    std::memset(to, 0, bytes(width * channels));
    return;
  }
  const int16_t* from = x.data + (row / height * x.height + y) * x.width * x.stride;
  std::memset(to, 0, bytes(border * channels));
  to += border * channels;
  for (ptrdiff_t j = 0; j < x.width; ++j, from += x.stride, to += channels) {
    std::memcpy(to, from, bytes(x.channels));
    if (x.channels < channels) to[x.channels] = 0;
  }
  std::memset(to, 0, bytes(border * channels));
}

// ---- Latents ----

// Positions that a task takes at a time; that latents are fetched ahead of their use; reals
// in a line of the cache.
constexpr ptrdiff_t kRun = 64;
constexpr ptrdiff_t kAhead = 4;
constexpr ptrdiff_t kLine = 16;

// f(begin, end) for runs of positions, on all threads.
template <class F>
void for_runs(ptrdiff_t positions, int threads, F&& f) {
  parallel_for(divide_up(positions, kRun), threads,
               [&](ptrdiff_t task) { f(task * kRun, std::min((task + 1) * kRun, positions)); });
}

// ---- Attention ----

// Rows 2i and 2i + 1 side by side, as products read them: `rows` rows of `depth` integers become
// [rows / 2 rounded up, columns, 2], zero in the padding.
void interleave(const int16_t* x, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t depth,
                ptrdiff_t columns, int16_t* to) {
  for (ptrdiff_t row = 0; row < rows; row += 2, to += 2 * columns) {
    const int16_t* even = x + row * stride;
    const int16_t* odd = row + 1 < rows ? even + stride : nullptr;
    for (ptrdiff_t c = 0; c < columns; ++c) {
      to[2 * c] = c < depth ? even[c] : int16_t{0};
      to[2 * c + 1] = c < depth && odd != nullptr ? odd[c] : int16_t{0};
    }
  }
}

void to_float(const int64_t* x, ptrdiff_t count, float* to) {
  for (ptrdiff_t i = 0; i < count; ++i) to[i] = static_cast<float>(x[i]);
}

// The largest exponent with which a value of this magnitude does not saturate; 0 for zero.
int exponent_of(float largest) {
  constexpr int bits = 12;
  constexpr int limit = 60;
  if (!(largest > 0.0f)) return 0;
  int exponent = 0;
  const float mantissa = std::frexp(largest, &exponent);
  const int fits = bits - exponent - (mantissa > kActivationLimit / (1 << bits) ? 1 : 0);
  return std::clamp(fits, -limit, limit);
}

// What the keys and values of one head contribute to all queries: averages of the values, [depth /
// 2 rounded up, columns, 2]. Returns their exponent relative to that of the values.
int linear_context(const Kernels& kernels, const LinearKeys& a, int16_t* context) {
  const ptrdiff_t depth = a.depth;
  const ptrdiff_t columns = round_up(depth, kGroup);
  int64_t totals[kMaxDepth] = {};
  int64_t sums[kMaxDepth * kMaxDepth];
  float real[kMaxDepth * kMaxDepth];
  int16_t rows[kMaxDepth * kMaxDepth];
  std::fill_n(sums, depth * columns, int64_t{0});
  kernels.linear_keys(a, sums, totals);
  float largest = 0.0f;
  for (ptrdiff_t d = 0; d < depth; ++d) {
    const auto total = static_cast<float>(totals[d]);
    for (ptrdiff_t j = 0; j < depth; ++j) {
      const float r = static_cast<float>(sums[d * columns + j]) / total;
      largest = std::max(largest, std::fabs(r));
      real[d * depth + j] = r;
    }
  }
  const int exponent = exponent_of(largest);
  kernels.quantise(real, std::ldexp(1.0f, exponent), rows, depth * depth);
  interleave(rows, depth, depth, depth, columns, context);
  return exponent;
}

// Keys [n, depth] of one head in groups of 16: [groups, depth / 2 rounded up, 16, 2].
void pack_keys(const int16_t* k, ptrdiff_t stride, ptrdiff_t count, ptrdiff_t depth, int16_t* to) {
  const ptrdiff_t row = round_up(depth, 2);
  for (ptrdiff_t n = 0; n < round_up(count, kGroup); ++n) {
    int16_t* group = to + n / kGroup * kGroup * row + n % kGroup * 2;
    for (ptrdiff_t d = 0; d < row; ++d) {
      const bool inside = n < count && d < depth;
      group[d / 2 * kGroup * 2 + d % 2] = inside ? k[n * stride + d] : int16_t{0};
    }
  }
}

// What memory of a thread is for: a task has both at once.
enum class Memory { kKernel, kTile };

// Memory of a thread, kept for its next task.
template <Memory>
void* thread_memory(ptrdiff_t bytes) {
  constexpr ptrdiff_t line_bytes = 64;
  struct alignas(line_bytes) Line {
    int8_t bytes[line_bytes];
  };
  thread_local std::vector<Line> memory;
  const auto lines = static_cast<size_t>(divide_up(bytes, line_bytes));
  if (memory.size() < lines) memory.resize(lines);
  return memory.data();
}

// Where position n of a tile lies in it, for Conv.
constexpr std::array<ptrdiff_t, kTile> kTilePositions = [] {
  std::array<ptrdiff_t, kTile> positions{};
  for (ptrdiff_t n = 0; n < kTile; ++n) positions[static_cast<size_t>(n)] = n;
  return positions;
}();

}  // namespace

void conv_panels(const Kernels& kernels, const Conv& c, int first, int last, ptrdiff_t begin,
                 ptrdiff_t end) {
  void* scratch =
      kernels.layout == Layout::kTiles ? thread_memory<Memory::kKernel>(conv_scratch(c)) : nullptr;
  kernels.conv(c, first, last, begin, end, scratch);
}

void* tile_memory(ptrdiff_t bytes) { return thread_memory<Memory::kTile>(bytes); }

void conv_in_tile(const Kernels& kernels, Conv c, ptrdiff_t count) {
  c.rows = 1;
  c.corners = kTilePositions.data();
  const int panels = panel_count(kernels.layout, (c.outputs + kGroup - 1) / kGroup);
  conv_panels(kernels, c, 0, panels, 0, count);
}

void Runner::conv(const std::vector<Input>& inputs, Positions at, ptrdiff_t positions,
                  Conv c) const {
  if (inputs.empty()) return direct(inputs, at, positions, c);
  const auto fewer = [&](const Input& input) {
    return at == Positions::kAll ? input.weights->winograd(threads) : nullptr;
  };
  // Each input that takes fewer products, and all others between two of those, onto one sum.
  std::unique_ptr<float[]> sums;
  for (auto begin = inputs.begin(), end = begin; begin != inputs.end(); begin = end) {
    const WinogradWeights* weights = fewer(*end++);
    while (weights == nullptr && end != inputs.end() && fewer(*end) == nullptr) ++end;
    Conv part = c;
    if (end != inputs.end()) {
      if (sums == nullptr) sums = buffer<float>(positions * c.outputs);
      part = {};
      part.outputs = c.outputs;
      part.bias = c.bias;
      part.partial = c.partial;
      part.out_float = sums.get();
    }
    if (weights != nullptr) {
      winograd(*begin, *weights, part);
    } else {
      direct({begin, end}, at, positions, part);
    }
    c.bias = nullptr;
    c.partial = sums.get();
  }
}

void Runner::winograd(const Input& input, const WinogradWeights& weights, const Conv& c) const {
  const Act& x = input.x;
  const auto zeros = std::make_unique<int16_t[]>(static_cast<size_t>(x.channels));
  const Winograd s{x.data,
                   x.stride,
                   x.height,
                   x.width,
                   x.channels,
                   weights.data.get(),
                   input.weights->kernel() / 2,
                   weights.part,
                   weights.most_squares,
                   input.scales,
                   input.unit,
                   zeros.get()};
  const ptrdiff_t tiles = x.batch * divide_up(x.height, 2) * divide_up(x.width, 2);
  const ptrdiff_t chunk = round_up(divide_up(tiles, task_count(threads)), kWinogradTiles);
  parallel_for(divide_up(tiles, chunk), threads, [&](ptrdiff_t task) {
    kernels->winograd(c, s, task * chunk, std::min((task + 1) * chunk, tiles),
                      thread_memory<Memory::kKernel>(winograd_scratch(s, c.outputs)));
  });
}

void Runner::direct(const std::vector<Input>& inputs, Positions at, ptrdiff_t positions,
                    Conv c) const {
  std::vector<Segment> segments;
  std::vector<std::unique_ptr<int16_t[]>> copies;
  std::vector<ptrdiff_t> corners;
  c.rows = inputs.empty() ? 1 : static_cast<int>(inputs[0].weights->kernel());
  const ptrdiff_t border = c.rows / 2;
  if (!inputs.empty()) corners = corners_of(inputs[0].x, at, border);
  for (const Input& input : inputs) {
    const Act& x = input.x;
    const ptrdiff_t channels = input.weights->padded_channels();
    Segment segment{x.data,       x.stride,  0, c.rows * channels / 2, input.weights->data(),
                    input.scales, input.unit};
    if (border > 0 || channels != x.channels) {
      const ptrdiff_t rows = x.batch * (x.height + 2 * border);
      const ptrdiff_t row = (x.width + 2 * border) * channels;
      copies.push_back(buffer<int16_t>(rows * row));
      int16_t* copy = copies.back().get();
      rearrange(rows, rows * row < 1 << 16 ? 1 : threads,
                [&](ptrdiff_t r) { copy_padded_row(x, border, channels, r, copy); });
      segment.x = copy;
      segment.position_stride = channels;
      segment.row_stride = row;
    }
    segments.push_back(segment);
  }
  c.segments = segments.data();
  c.segment_count = static_cast<int>(segments.size());
  c.corners = corners.data();

  // Enough tasks to share out evenly, each of a multiple of every register tile's rows and, unless
  // positions are too few, of all panels, so that an output is written while it lies in a cache.
  const int panels = panel_count(kernels->layout, (c.outputs + kGroup - 1) / kGroup);
  const ptrdiff_t tasks = task_count(threads);
  const ptrdiff_t chunk = round_up(divide_up(positions, tasks), 48);
  const ptrdiff_t chunks = divide_up(positions, chunk);
  const ptrdiff_t parts = std::min<ptrdiff_t>(panels, divide_up(tasks, chunks));
  parallel_for(parts * chunks, threads, [&](ptrdiff_t task) {
    const ptrdiff_t begin = task % chunks * chunk;
    const ptrdiff_t part = task / chunks;
    conv_panels(*kernels, c, static_cast<int>(part * panels / parts),
                static_cast<int>((part + 1) * panels / parts), begin,
                std::min(begin + chunk, positions));
  });
}

std::vector<int32_t> depthwise_taps(const int16_t* weights, ptrdiff_t channels) {
  std::vector<int32_t> taps(static_cast<size_t>(6 * channels));
  int32_t* to = taps.data();
  for (ptrdiff_t column = 0; column < 3; ++column, to += 2 * channels) {
    for (ptrdiff_t c = 0; c < channels; ++c) {
      const auto tap = [&](ptrdiff_t row) { return weights[(3 * row + column) * channels + c]; };
      const int16_t upper[2] = {tap(0), tap(1)};
      std::memcpy(to + c, upper, sizeof upper);
      to[channels + c] = static_cast<uint16_t>(tap(2));  // the lower half, as in a widened integer
    }
  }
  return taps;
}

void Runner::depthwise(const int16_t* weights, ptrdiff_t batch, Depthwise d, int16_t* out) const {
  const std::vector<int32_t> taps = depthwise_taps(weights, d.channels);
  const std::vector<int16_t> zeros(static_cast<size_t>(d.channels));
  d.weights = taps.data();
  d.zeros = zeros.data();
  parallel_for(batch * d.height, threads, [&](ptrdiff_t row) {
    const ptrdiff_t first = row * d.width;
    kernels->depthwise(d, first, first + d.width, out + first * d.channels);
  });
}

void Runner::layer_norm(const LayerNorm& l, ptrdiff_t positions) const {
  constexpr ptrdiff_t chunk = 64;
  parallel_for(divide_up(positions, chunk), threads, [&](ptrdiff_t task) {
    kernels->layer_norm(l, task * chunk, std::min((task + 1) * chunk, positions));
  });
}

void Runner::window_attention(const Act& qkv, const float* bias, WindowAttention a) const {
  constexpr ptrdiff_t border = kWindow / 2;
  const ptrdiff_t dim = qkv.channels / 3;
  a.depth = static_cast<int>(dim / a.heads);
  a.height = qkv.height;
  a.width = qkv.width;
  const ptrdiff_t pairs = divide_up(a.depth, 2);
  const ptrdiff_t columns = round_up(a.depth, kGroup);
  const ptrdiff_t height = a.height + 2 * border;
  const ptrdiff_t width = a.width + 2 * border;
  const ptrdiff_t plane = height * width;
  a.padded_width = width;
  a.padded_positions = plane;
  const ptrdiff_t positions = qkv.batch * plane;
  const ptrdiff_t q_size = positions * a.heads * pairs;
  constexpr ptrdiff_t beyond = kWindowLanes - (kWindow - 1) * kRowLanes - kWindow;
  const auto q = buffer<int32_t>(q_size + beyond);
  const auto k = buffer<int16_t>(positions * a.heads * 2 * pairs);
  const auto v = buffer<int16_t>(positions * a.heads * columns * 2);
  std::fill_n(q.get() + q_size, beyond, 0);
  a.q = q.get();
  a.k = k.get();
  a.v = v.get();

  // Zero in the lanes of no meaning.
  std::vector<float> lanes(static_cast<size_t>(a.heads * kTokens * kWindowLanes));
  for (ptrdiff_t head = 0; head < a.heads; ++head) {
    for (ptrdiff_t query = 0; query < kTokens; ++query) {
      const ptrdiff_t lane = query / kWindow * kRowLanes + query % kWindow;
      for (ptrdiff_t key = 0; key < kTokens; ++key) {
        lanes[static_cast<size_t>((head * kTokens + key) * kWindowLanes + lane)] =
            bias[(head * kTokens + query) * kTokens + key];
      }
    }
  }
  a.bias = lanes.data();

  const ptrdiff_t part = a.heads * columns;
  rearrange(qkv.batch * height, threads, [&](ptrdiff_t row) {
    const ptrdiff_t b = row / height;
    const ptrdiff_t y = row % height - border;
    // Queries, keys and values of a position, [3, heads, columns].
    const auto split = [&](ptrdiff_t x, int16_t* to) {
      if (y < 0 || y >= a.height || x < 0 || x >= a.width) {
        std::fill_n(to, 3 * part, int16_t{0});
        return;
      }
      const int16_t* from = qkv.data + ((b * a.height + y) * a.width + x) * qkv.stride;
      for (ptrdiff_t i = 0; i < 3 * a.heads; ++i, to += columns) {
        const int16_t* channel = from + i / a.heads * dim + i % a.heads;
        for (ptrdiff_t d = 0; d < a.depth; ++d) to[d] = channel[d * a.heads];
        std::fill(to + a.depth, to + columns, int16_t{0});
      }
    };
    const auto both = buffer<int16_t>(6 * part);
    int16_t* now = both.get();
    int16_t* next = now + 3 * part;
    split(-border, now);
    for (ptrdiff_t x = 0; x < width; ++x, std::swap(now, next)) {
      split(x + 1 - border, next);
      const ptrdiff_t n = row * width + x;
      for (ptrdiff_t head = 0; head < a.heads; ++head) {
        const int16_t* queries = now + head * columns;
        int32_t* to_q = q.get() + (b * a.heads + head) * pairs * plane + n - b * plane;
        for (ptrdiff_t i = 0; i < pairs; ++i) {
          std::memcpy(to_q + i * plane, queries + 2 * i, 2 * sizeof(int16_t));
        }
        std::copy_n(queries + part, 2 * pairs, k.get() + (n * a.heads + head) * 2 * pairs);
        const int16_t* values = queries + 2 * part;
        const int16_t* next_values = next + 2 * part + head * columns;
        int16_t* to_v = v.get() + (n * a.heads + head) * columns * 2;
        for (ptrdiff_t d = 0; d < columns; ++d) {
          to_v[2 * d] = values[d];
          to_v[2 * d + 1] = next_values[d];
        }
      }
    }
  });
  parallel_for(qkv.batch * qkv.height, threads,
               [&](ptrdiff_t image_row) { kernels->window_attention(a, image_row); });
}

void Runner::linear_attention(const Act& q, const Act& k, const Act& v, int heads,
                              float query_scale, float key_scale, int value_exponent,
                              float out_scale, int16_t* out) const {
  const ptrdiff_t depth = q.channels / heads;
  const ptrdiff_t keys = k.height * k.width;
  const ptrdiff_t all_heads = q.batch * heads;
  const ptrdiff_t context_size = round_up(depth, 2) * round_up(depth, kGroup);
  const auto contexts = buffer<int16_t>(all_heads * context_size);
  std::vector<float> real_scales(static_cast<size_t>(all_heads));
  parallel_for(all_heads, threads, [&](ptrdiff_t task) {
    const ptrdiff_t first = task / heads * keys;
    const ptrdiff_t channel = task % heads * depth;
    const LinearKeys of_head{k.data + first * k.stride + channel,
                             k.stride,
                             v.data + first * v.stride + channel,
                             v.stride,
                             keys,
                             depth,
                             key_scale};
    const int exponent = linear_context(*kernels, of_head, contexts.get() + task * context_size);
    real_scales[static_cast<size_t>(task)] = std::ldexp(1.0f, -exponent - value_exponent);
  });

  const ptrdiff_t queries = q.height * q.width;
  constexpr ptrdiff_t block = 32;
  const ptrdiff_t blocks = divide_up(queries, block);
  parallel_for(q.batch * blocks, threads, [&](ptrdiff_t task) {
    const ptrdiff_t b = task / blocks;
    const ptrdiff_t start = task % blocks * block;
    const ptrdiff_t first = b * queries + start;
    for (ptrdiff_t head = 0; head < heads; ++head) {
      const LinearQueries of_head{q.data + first * q.stride + head * depth,
                                  q.stride,
                                  depth,
                                  query_scale,
                                  contexts.get() + (b * heads + head) * context_size,
                                  real_scales[static_cast<size_t>(b * heads + head)],
                                  out + first * q.channels + head * depth,
                                  q.channels,
                                  out_scale};
      kernels->linear_queries(of_head, std::min(block, queries - start));
    }
  });
}

void Runner::softmax_attention(const Act& q, const Act& k, const Act& v, int heads, bool exclude,
                               float logit_scale, float value_scale, float out_scale,
                               int16_t* out) const {
  const ptrdiff_t depth = q.channels / heads;
  const ptrdiff_t row = round_up(depth, 2);
  const ptrdiff_t columns = round_up(depth, kGroup);
  const ptrdiff_t queries = q.height * q.width;
  const ptrdiff_t keys = k.height * k.width;
  const ptrdiff_t all_heads = q.batch * heads;
  const ptrdiff_t query_size = queries * row;
  const ptrdiff_t key_size = round_up(keys, kGroup) * row;
  const ptrdiff_t value_size = round_up(keys, 2) * columns;
  const auto packed_queries = buffer<int16_t>(all_heads * query_size);
  const auto packed_keys = buffer<int16_t>(all_heads * key_size);
  const auto packed_values = buffer<int16_t>(all_heads * value_size);
  rearrange(all_heads, threads, [&](ptrdiff_t task) {
    const ptrdiff_t b = task / heads;
    const ptrdiff_t channel = task % heads * depth;
    const int16_t* from = q.data + b * queries * q.stride + channel;
    int16_t* to = packed_queries.get() + task * query_size;
    for (ptrdiff_t n = 0; n < queries; ++n, from += q.stride, to += row) {
      to[row - 1] = 0;
      std::copy_n(from, depth, to);
    }
    pack_keys(k.data + b * keys * k.stride + channel, k.stride, keys, depth,
              packed_keys.get() + task * key_size);
    interleave(v.data + b * keys * v.stride + channel, v.stride, keys, depth, columns,
               packed_values.get() + task * value_size);
  });

  const ptrdiff_t blocks = divide_up(queries, kQueryRows);
  parallel_for(all_heads * blocks, threads, [&](ptrdiff_t task) {
    const ptrdiff_t head = task / blocks;
    const ptrdiff_t first = task % blocks * kQueryRows;
    const auto count = static_cast<int>(std::min<ptrdiff_t>(kQueryRows, queries - first));
    const SoftmaxAttention attention{packed_queries.get() + head * query_size,
                                     queries,
                                     q.width,
                                     row,
                                     row / 2,
                                     packed_keys.get() + head * key_size,
                                     packed_values.get() + head * value_size,
                                     keys,
                                     k.width,
                                     static_cast<int>(columns / kGroup),
                                     exclude,
                                     logit_scale};
    int64_t sums[kQueryRows * kMaxDepth] = {};
    int64_t totals[kQueryRows];
    float real[kMaxDepth];
    kernels->softmax_attention(attention, first, count, sums, totals);
    int16_t* to = out + (head / heads * queries + first) * q.channels + head % heads * depth;
    for (int n = 0; n < count; ++n, to += q.channels) {
      to_float(sums + n * columns, depth, real);
      const auto total = static_cast<float>(std::max<int64_t>(totals[n], 1));
      kernels->quantise_ratio(real, total, value_scale, out_scale, to, depth);
    }
  });
}

void Runner::colour(const Act& x, Positions at, ptrdiff_t width, bool squeezed,
                    int16_t* out) const {
  const auto bytes = static_cast<size_t>(x.channels) * sizeof(int16_t);
  const bool from_squeezed = x.width != width;
  rearrange(x.batch * x.height, threads, [&](ptrdiff_t row) {
    const ptrdiff_t first = first_column(row, x.height, at);
    const int16_t* from = x.data + (row * x.width + (from_squeezed ? 0 : first)) * x.stride;
    const ptrdiff_t step = from_squeezed ? x.stride : 2 * x.stride;
    int16_t* to = out + row * (squeezed ? width / 2 : width) * x.channels;
    for (ptrdiff_t j = 0; j < width / 2; ++j, from += step) {
      if (!squeezed) {
        std::memset(to + (1 - first) * x.channels, 0, bytes);
        std::memcpy(to + first * x.channels, from, bytes);
        to += 2 * x.channels;
      } else {
        std::memcpy(to, from, bytes);
        to += x.channels;
      }
    }
  });
}

void Runner::scale_indexes(const float* scales, ptrdiff_t stride, ptrdiff_t positions,
                           ptrdiff_t channels, const float* bounds, int bound_count,
                           uint8_t* out) const {
  for_runs(positions, threads, [&](ptrdiff_t begin, ptrdiff_t end) {
    for (ptrdiff_t n = begin; n < end; ++n) {
      kernels->scale_indexes(scales + n * stride, bounds, bound_count, out + n * channels,
                             channels);
    }
  });
}

void Runner::symbols(const Latents& y, const float* means, ptrdiff_t stride, int32_t* out) const {
  const ptrdiff_t half = y.width / 2;
  parallel_for(y.rows, threads, [&](ptrdiff_t row) {
    for (ptrdiff_t j = 0; j < half; ++j) {
      // The latents lie too far apart for the machine to foresee.
      const float* ahead = y.squeezed(row, std::min(j + kAhead, half - 1));
      for (ptrdiff_t c = 0; c < y.channels; c += kLine) __builtin_prefetch(ahead + c);
      kernels->symbols(y.squeezed(row, j), means + (row * half + j) * stride,
                       out + (row * half + j) * y.channels, y.channels);
    }
  });
}

void Runner::decoded(const int32_t* symbols, const float* means, ptrdiff_t stride, bool clear,
                     const Latents& y) const {
  const ptrdiff_t half = y.width / 2;
  parallel_for(y.rows, threads, [&](ptrdiff_t row) {
    if (clear) {
      float* first = y.data + row * y.width * y.stride;
      for (ptrdiff_t x = 0; x < y.width; ++x) std::fill_n(first + x * y.stride, y.channels, 0.0f);
    }
    for (ptrdiff_t j = 0; j < half; ++j) {
      kernels->decoded(symbols + (row * half + j) * y.channels, means + (row * half + j) * stride,
                       y.squeezed(row, j), y.channels);
    }
  });
}

uint32_t Runner::digest(const float* y, ptrdiff_t stride, ptrdiff_t positions, ptrdiff_t channels,
                        uint64_t first) const {
  std::atomic<uint32_t> total{0};
  for_runs(positions, threads, [&](ptrdiff_t begin, ptrdiff_t end) {
    uint32_t sum = 0;
    for (ptrdiff_t n = begin; n < end; ++n) {
      const auto number = static_cast<uint32_t>(first + static_cast<uint64_t>(n));
      sum += kernels->digest(y + n * stride, number * kDigestStep,
                             static_cast<uint32_t>(positions) * kDigestStep, channels);
    }
    total.fetch_add(sum, std::memory_order_relaxed);
  });
  return total;
}

void Runner::scale(const float* r, ptrdiff_t stride, ptrdiff_t positions, ptrdiff_t channels,
                   const float* factors, float* out) const {
  for_runs(positions, threads, [&](ptrdiff_t begin, ptrdiff_t end) {
    for (ptrdiff_t n = begin; n < end; ++n) {
      const float* from = r + n * stride;
      float* to = out + n * channels;
      for (ptrdiff_t c = 0; c < channels; ++c) to[c] = from[c] * factors[c];
    }
  });
}

void Runner::quantise(const float* r, float scale, int16_t* out, ptrdiff_t count) const {
  constexpr ptrdiff_t chunk = 1 << 14;
  parallel_for(divide_up(count, chunk), threads, [&](ptrdiff_t task) {
    const ptrdiff_t begin = task * chunk;
    kernels->quantise(r + begin, scale, out + begin, std::min(chunk, count - begin));
  });
}

void Runner::add_half_tanh(const float* r, Positions at, ptrdiff_t rows, ptrdiff_t height,
                           ptrdiff_t width, ptrdiff_t channels, float* y) const {
  parallel_for(rows, threads, [&](ptrdiff_t row) {
    const ptrdiff_t first = first_column(row, height, at);
    for (ptrdiff_t j = 0; j < width / 2; ++j) {
      kernels->add_half_tanh(r + (row * (width / 2) + j) * channels,
                             y + (row * width + 2 * j + first) * channels, channels);
    }
  });
}

}  // namespace mlic::exact
