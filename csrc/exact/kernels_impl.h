// The inner kernels over the vector type Simd, which the including file has defined. Everything
// here has internal linkage; see kernels.h for why nothing of the standard library is used.
//
// The order of float operations is that of mlic_fast/engine/arithmetic.py; the build forbids
// contraction into fma.
#pragma once

#include <cstring>
#include <type_traits>

#include "exact/constants.h"
#include "exact/kernels.h"

#if defined(__clang__)
#define MLIC_UNROLL _Pragma("unroll")
#else
#define MLIC_UNROLL _Pragma("GCC unroll 32")
#endif
#define MLIC_LAMBDA __attribute__((always_inline))
#define MLIC_INLINE __attribute__((always_inline)) inline

namespace mlic::exact {
namespace {

using F = Simd::F;
using I = Simd::I;
using S = Simd;
constexpr int W = Simd::width;
constexpr int kGroupVectors = kGroup / W;
constexpr bool kWide = S::tile_groups == kMostPanelGroups;
constexpr Layout kLayout = kWide ? Layout::kWidePairs : Layout::kPairs;

// Of a register tile with so many vectors: few enough that accumulators, a row's pair and the
// columns fit the registers.
constexpr int rows_of(int vectors) {
  return kWide && vectors == kMostPanelGroups * kGroupVectors ? 6 : S::rows;
}

// ---- Elementwise ----

inline F clamp(F x, float limit) { return S::min(S::max(x, S::set(-limit)), S::set(limit)); }

// f(0), .., f(N - 1), each with a constant. Unlike a loop this is unrolled before the compiler
// decides which arrays can live in registers.
template <int N, class Function>
MLIC_INLINE void unroll(const Function& f) {
  if constexpr (N > 0) {
    unroll<N - 1>(f);
    f(std::integral_constant<int, N - 1>{});
  }
}

// Of N vectors, step by step: each step of one waits for the one before it, and a processor looks
// too few instructions ahead to find the other vectors behind all steps of the first. (Where the
// compiler takes a vector to have changed, it cannot put its steps together again.)
template <int N>
MLIC_INLINE void gelu(F* r) {
  F t[N], s[N], p[N];
  constexpr int n = sizeof(kGelu) / sizeof(kGelu[0]);
  unroll<N>([&](auto v) MLIC_LAMBDA { t[v] = clamp(r[v], kGeluClamp); });
  unroll<N>([&](auto v) MLIC_LAMBDA { s[v] = S::mul(t[v], t[v]); });
  unroll<N>([&](auto v) MLIC_LAMBDA { p[v] = S::mul(S::set(kGelu[n - 1]), s[v]); });
  unroll<n - 2>([&](auto i) MLIC_LAMBDA {
    unroll<N>([&](auto v) MLIC_LAMBDA { p[v] = S::add(p[v], S::set(kGelu[n - 2 - i])); });
    unroll<N>([&](auto v) MLIC_LAMBDA {
      p[v] = S::mul(p[v], s[v]);
      S::opaque(p[v]);
    });
  });
  unroll<N>([&](auto v) MLIC_LAMBDA { p[v] = S::add(p[v], S::set(kGelu[0])); });
  unroll<N>([&](auto v) MLIC_LAMBDA { p[v] = S::mul(t[v], p[v]); });
  unroll<N>([&](auto v) MLIC_LAMBDA { p[v] = S::add(S::set(0.5f), p[v]); });
  unroll<N>([&](auto v) MLIC_LAMBDA { r[v] = S::mul(r[v], p[v]); });
}

inline F half_tanh(F r) {
  const F t = clamp(r, kTanhClamp);
  const F s = S::mul(t, t);
  F top = S::mul(S::add(s, S::set(378.0f)), s);
  top = S::mul(S::add(top, S::set(17325.0f)), s);
  top = S::add(top, S::set(135135.0f));
  F bottom = S::mul(S::add(S::mul(S::set(28.0f), s), S::set(3150.0f)), s);
  bottom = S::mul(S::add(bottom, S::set(62370.0f)), s);
  bottom = S::add(bottom, S::set(135135.0f));
  return S::mul(S::set(0.5f), S::div(S::mul(t, top), bottom));
}

// exp(x) for x <= 0, in 0 .. 16383; 0 for -infinity. Of N vectors, as above.
template <int N>
MLIC_INLINE void exp_int(const F* x, I* out) {
  F g[N], p[N];
  I n[N];
  constexpr int terms = sizeof(kExp2) / sizeof(kExp2[0]);
  unroll<N>([&](auto v) MLIC_LAMBDA {
    g[v] = S::min(S::mul(x[v], S::set(kMinusLog2E)), S::set(kExpClamp));
    n[v] = S::truncate(g[v]);
    S::opaque(n[v]);
  });
  unroll<N>([&](auto v) MLIC_LAMBDA {
    g[v] = S::sub(g[v], S::to_float(n[v]));
    p[v] = S::mul(S::set(kExp2[terms - 1]), g[v]);
    S::opaque(p[v]);
  });
  unroll<terms - 2>([&](auto i) MLIC_LAMBDA {
    unroll<N>([&](auto v) MLIC_LAMBDA {
      p[v] = S::mul(S::add(p[v], S::set(kExp2[terms - 2 - i])), g[v]);
      S::opaque(p[v]);
    });
  });
  unroll<N>([&](auto v) MLIC_LAMBDA {
    const F power = S::from_bits(S::shift_left_23(S::sub(S::set(127), n[v])));
    p[v] = S::mul(S::add(p[v], S::set(kExp2[0])), power);
    out[v] = S::round(S::mul(p[v], S::set(kSoftmaxOne)));
  });
}

inline I quantise(F r, F scale) { return S::round(clamp(S::mul(r, scale), kActivationLimit)); }

// ---- Products ----

template <int P, int V>
MLIC_INLINE void clear(I (&acc)[P][V]) {
  unroll<P * V>([&](auto i) MLIC_LAMBDA { acc[i / V][i % V] = S::zero(); });
}

template <int P, int V>
MLIC_INLINE void copy(const I (&from)[P][V], I (&to)[P][V]) {
  unroll<P * V>([&](auto i) MLIC_LAMBDA { to[i / V][i % V] = from[i / V][i % V]; });
}

// acc[p][v] += sum over pairs of integers, x_step apart from x[p] on, and of column vector v of
// packed weights.
template <int P, int V>
MLIC_INLINE void dot(I (&acc)[P][V], const int16_t* const (&x)[P], ptrdiff_t pairs,
                     const int16_t* w, ptrdiff_t w_step, ptrdiff_t x_step = 2) {
  I sums[P][V];
  copy(acc, sums);
  const auto add = [&](ptrdiff_t i, const int16_t* weights) MLIC_LAMBDA {
    S::Column column[V];
    unroll<V>([&](auto v) MLIC_LAMBDA { column[v] = S::load_column(weights + 2 * W * v); });
    unroll<P>([&](auto p) MLIC_LAMBDA {
      const S::Pair pair = S::set_pair(x[p] + x_step * i);
      unroll<V>([&](auto v) MLIC_LAMBDA { sums[p][v] = S::dot(sums[p][v], pair, column[v]); });
    });
  };
  ptrdiff_t i = 0;
  for (; i + 1 < pairs; i += 2, w += 2 * w_step) {
    add(i, w);
    add(i + 1, w + w_step);
  }
  if (i < pairs) add(i, w);
  copy(sums, acc);
}

// What the sums begin with, of V vectors of outputs from o on: f(p, v, start).
template <int P, int V, class Function>
MLIC_INLINE void for_starts(const Conv& c, const ptrdiff_t (&n)[P], ptrdiff_t o,
                            const Function& f) {
  const ptrdiff_t left = c.outputs - o;
  if (c.partial == nullptr) {
    unroll<V>([&](auto v) MLIC_LAMBDA {
      const F bias = S::load(c.bias + o + v * W, left - v * W);
      unroll<P>([&](auto p) MLIC_LAMBDA { f(p, v, bias); });
    });
  } else {
    unroll<P * V>([&](auto i) MLIC_LAMBDA {
      const float* from = c.partial + n[i / V] * c.outputs + o + i % V * W;
      f(i / V, i % V, S::load(from, left - i % V * W));
    });
  }
}

// r += float(acc) * m for input number s at positions n[p]; the first begins the sums. (Not
// inlined, so that all pointers stay in registers.)
template <int P, int V>
__attribute__((noinline)) void add_segment(const Conv& c, int number, const ptrdiff_t (&n)[P],
                                           int panel_first, int panel_groups, int group,
                                           F (&r)[P][V]) {
  const Segment& s = c.segments[number];
  I acc[P][V];
  clear(acc);
  const ptrdiff_t step = panel_groups * kGroup * 2;
  const auto* w = static_cast<const int16_t*>(s.weights);
  w += panel_first * kGroup * 2 * s.pairs * c.rows;
  w += (group - panel_first) * kGroup * 2;
  const int16_t* x[P];
  for (int p = 0; p < P; ++p) x[p] = s.x + c.corners[n[p]] * s.position_stride;
  for (int row = 0; row < c.rows; ++row) {
    dot(acc, x, s.pairs, w, step);
    w += s.pairs * step;
    for (int p = 0; p < P; ++p) x[p] += s.row_stride;
  }
  const ptrdiff_t first = ptrdiff_t{group} * kGroup;
  F m[V];
  unroll<V>([&](auto v) MLIC_LAMBDA {
    const ptrdiff_t o = first + v * W;
    m[v] = S::mul(S::load(s.scales + o, c.outputs - o), S::set(s.unit));
  });
  const auto add = [&](int p, int v, F before) MLIC_LAMBDA {
    r[p][v] = S::add(before, S::mul(S::to_float(acc[p][v]), m[v]));
  };
  if (number == 0) {
    for_starts<P, V>(c, n, first, add);
  } else {
    unroll<P * V>([&](auto i) MLIC_LAMBDA { add(i / V, i % V, r[i / V][i % V]); });
  }
}

// The steps after the sums, for V vectors of outputs from o on of `count` positions; all outputs
// are there if kFull. Each step is done for all before the next, since they share its other
// operands.
template <int P, int V, bool kFull>
__attribute__((noinline)) void finish_sums(const Conv& c, const ptrdiff_t (&n)[P], int count,
                                           ptrdiff_t o, F (&r)[P][V]) {
  const ptrdiff_t left = kFull ? V * W : c.outputs - o;
  if (c.gelu) {
    constexpr int N = P * V % 6 == 0 ? 6 : 4;  // as many as registers allow
    static_assert(P * V % N == 0);
    for (int i = 0; i < count * V; i += N) gelu<N>(&r[0][0] + i);
  }
  if (c.residual != nullptr) {
    for (int p = 0; p < count; ++p) {
      const float* from = c.residual + n[p] * c.outputs + o;
      unroll<V>([&](auto v) MLIC_LAMBDA {
        r[p][v] = S::add(r[p][v], S::load(from + v * W, left - v * W));
      });
    }
  }
  if (c.residual_act != nullptr) {
    const F scale = S::set(c.residual_scale);
    for (int p = 0; p < count; ++p) {
      const int16_t* from = c.residual_act + n[p] * c.residual_stride + o;
      unroll<V>([&](auto v) MLIC_LAMBDA {
        const I q = S::widen(from + v * W, left - v * W);
        r[p][v] = S::add(r[p][v], S::mul(S::to_float(q), scale));
      });
    }
  }
  if (c.out_act != nullptr) {
    const F scale = S::set(c.out_scale);
    for (int p = 0; p < count; ++p) {
      int16_t* to = c.out_act + n[p] * c.outputs + o;
      unroll<V>([&](auto v)
                    MLIC_LAMBDA { S::narrow(to + v * W, quantise(r[p][v], scale), left - v * W); });
    }
  }
  if (c.out_float != nullptr) {
    for (int p = 0; p < count; ++p) {
      float* to = c.out_float + n[p] * c.outputs + o;
      unroll<V>([&](auto v) MLIC_LAMBDA { S::store(to + v * W, r[p][v], left - v * W); });
    }
  }
}

template <int P, int V>
void finish(const Conv& c, const ptrdiff_t (&n)[P], int count, ptrdiff_t o, F (&r)[P][V]) {
  if (c.outputs - o >= V * W) {
    finish_sums<P, V, true>(c, n, count, o, r);
  } else {
    finish_sums<P, V, false>(c, n, count, o, r);
  }
}

// P positions from `begin` on (of which `count` exist) times V vectors of outputs from `group` on.
template <int P, int V>
void conv_tile(const Conv& c, const Panel& panel, int group, ptrdiff_t begin, int count) {
  ptrdiff_t n[P];
  for (int p = 0; p < P; ++p) n[p] = begin + (p < count ? p : count - 1);
  const ptrdiff_t first = ptrdiff_t{group} * kGroup;

  F r[P][V];
  if (c.segment_count == 0) {
    for_starts<P, V>(c, n, first, [&](int p, int v, F start) MLIC_LAMBDA { r[p][v] = start; });
  }
  for (int s = 0; s < c.segment_count; ++s) {
    add_segment(c, s, n, panel.first, panel.groups, group, r);
  }
  finish(c, n, count, first, r);
}

// f(vectors, column) for the columns of a panel: all vectors at once where registers allow, else
// those of each group. The number of vectors is a constant.
template <class Function>
MLIC_INLINE void for_columns(int groups, const Function& f) {
  if constexpr (kWide) {
    if (groups == 4) return f(std::integral_constant<int, 4 * kGroupVectors>{}, 0);
    if (groups == 3) return f(std::integral_constant<int, 3 * kGroupVectors>{}, 0);
    if (groups == 2) return f(std::integral_constant<int, 2 * kGroupVectors>{}, 0);
  }
  for (int group = 0; group < groups; ++group) {
    f(std::integral_constant<int, kGroupVectors>{}, group * kGroup);
  }
}

void conv_panel(const Conv& c, int index, ptrdiff_t begin, ptrdiff_t end) {
  const Panel panel = panel_of(kLayout, (c.outputs + kGroup - 1) / kGroup, index);
  for_columns(panel.groups, [&](auto vectors, int column) {
    constexpr int P = rows_of(vectors);
    for (ptrdiff_t n = begin; n < end; n += P) {
      const int count = static_cast<int>(end - n < P ? end - n : P);
      conv_tile<P, vectors>(c, panel, panel.first + column / kGroup, n, count);
    }
  });
}

// Positions whose inputs and outputs stay in the second level cache while all panels read and write
// them.
ptrdiff_t conv_block(const Conv& c) {
  constexpr ptrdiff_t bytes = 1 << 19, least = 48;
  ptrdiff_t pairs = 0;
  for (int s = 0; s < c.segment_count; ++s) pairs += c.segments[s].pairs;
  const ptrdiff_t each = 4 * pairs / c.rows + 4 * c.outputs;
  const ptrdiff_t fits = bytes / each / least * least;
  return fits < least ? least : fits;
}

void conv(const Conv& c, int first, int last, ptrdiff_t begin, ptrdiff_t end, void* /*scratch*/) {
  const ptrdiff_t block = conv_block(c);
  for (; begin < end; begin += block) {
    const ptrdiff_t stop = begin + block < end ? begin + block : end;
    for (int panel = first; panel < last; ++panel) conv_panel(c, panel, begin, stop);
  }
}

}  // namespace
}  // namespace mlic::exact

#include "exact/winograd_impl.h"

namespace mlic::exact {
namespace {

// Positions begin .. end of one row, a vector of channels from c on, all of them there if kFull.
// Every column is read once, as pairs of rows, and goes into the sums of the outputs to its right,
// at it and to its left.
template <bool kFull, bool kGelu>
inline void depthwise_run(const Depthwise& d, ptrdiff_t begin, ptrdiff_t end, ptrdiff_t c,
                          int16_t* out) {
  const ptrdiff_t x = begin % d.width;
  const ptrdiff_t y = begin / d.width % d.height;
  const ptrdiff_t channels = d.channels, left = kFull ? W : channels - c;
  I weights[6];
  unroll<6>([&](auto i) MLIC_LAMBDA { weights[i] = S::load(d.weights + i * channels + c, left); });
  const F bias = S::load(d.bias + c, left), scale = S::set(d.out_scale);
  const F m = S::mul(S::load(d.scales + c, left), S::set(d.unit));
  const int16_t* rows[3];
  ptrdiff_t strides[3];
  for (int i = 0; i < 3; ++i) {
    const bool inside = y + i >= 1 && y + i <= d.height;
    rows[i] = (inside ? d.x + (begin + (i - 1) * d.width - 1) * d.position_stride : d.zeros) + c;
    strides[i] = inside ? d.position_stride : 0;
  }

  constexpr int N = kGelu ? 6 : 1;  // positions that are finished at a time
  F r[N];
  int ready = 0;
  out += c;
  const auto finish_ready = [&]() MLIC_LAMBDA {
    for (int i = 0; i < ready; ++i, out += channels) S::narrow(out, quantise(r[i], scale), left);
    ready = 0;
  };
  I sums[3] = {S::zero(), S::zero(), S::zero()};
  for (ptrdiff_t column = -1; column <= end - begin; ++column) {
    sums[2] = S::zero();
    if (x + column >= 0 && x + column < d.width) {
      const I pair = S::pair(S::widen(rows[0], left), S::widen(rows[1], left));
      const I last = S::widen(rows[2], left);
      unroll<3>([&](auto i) MLIC_LAMBDA {
        sums[i] = S::dot(sums[i], pair, weights[2 * (2 - i)]);
        sums[i] = S::dot(sums[i], last, weights[2 * (2 - i) + 1]);
      });
    }
    for (int i = 0; i < 3; ++i) rows[i] += strides[i];
    if (column >= 1) {
      r[ready++] = S::add(bias, S::mul(S::to_float(sums[0]), m));
      if (ready == N) {
        if (kGelu) gelu<N>(r);
        finish_ready();
      }
    }
    sums[0] = sums[1];
    sums[1] = sums[2];
  }
  if (kGelu) {
    for (int i = 0; i < ready; ++i) gelu<1>(r + i);
  }
  finish_ready();
}

template <bool kGelu>
inline void depthwise_row(const Depthwise& d, ptrdiff_t begin, ptrdiff_t end, int16_t* out) {
  ptrdiff_t c = 0;
  for (; c + W <= d.channels; c += W) depthwise_run<true, kGelu>(d, begin, end, c, out);
  if (c < d.channels) depthwise_run<false, kGelu>(d, begin, end, c, out);
}

void depthwise(const Depthwise& d, ptrdiff_t begin, ptrdiff_t end, int16_t* out) {
  while (begin < end) {
    const ptrdiff_t row_end = begin - begin % d.width + d.width;
    const ptrdiff_t stop = row_end < end ? row_end : end;
    if (d.gelu) {
      depthwise_row<true>(d, begin, stop, out);
    } else {
      depthwise_row<false>(d, begin, stop, out);
    }
    out += (stop - begin) * d.channels;
    begin = stop;
  }
}

// Correctly rounded on every machine (the build sets -fno-math-errno, which leaves the
// instruction).
inline float square_root(float x) { return __builtin_sqrtf(x); }

void layer_norm(const LayerNorm& l, ptrdiff_t begin, ptrdiff_t end) {
  const ptrdiff_t channels = l.channels;
  const F scale = S::set(l.out_scale);
  for (ptrdiff_t n = begin; n < end; ++n) {
    const int16_t* x = l.x + n * l.position_stride;
    int32_t sum = 0;
    int64_t squares = 0;
    for (ptrdiff_t c = 0; c < channels; ++c) {
      sum += x[c];
      squares += int32_t{x[c]} * x[c];
    }
    const int64_t variance = channels * squares - int64_t{sum} * sum;
    const F root = S::set(square_root(static_cast<float>(variance) + l.epsilon));
    for (ptrdiff_t c = 0; c < channels; c += W) {
      const ptrdiff_t left = channels - c;
      const I deviation =
          S::dot(S::set(-sum), S::widen(x + c, left), S::set(static_cast<int32_t>(channels)));
      F r = S::div(S::to_float(deviation), root);
      r = S::add(S::mul(r, S::load(l.gain + c, left)), S::load(l.bias + c, left));
      S::narrow(l.out + n * channels + c, quantise(r, scale), left);
    }
  }
}

// As accumulate, for the rows of one tile.
template <int P>
inline void accumulate_tile(const int16_t* const (&x)[P], int count, ptrdiff_t pairs,
                            const int16_t* weights, int groups, int64_t* sums) {
  const ptrdiff_t columns = ptrdiff_t{groups} * kGroup;
  constexpr ptrdiff_t block = kProductsInt32 / 2;
  for (ptrdiff_t i = 0; i < pairs; i += block) {
    const int16_t* at[P];
    for (int p = 0; p < P; ++p) at[p] = x[p] + 2 * i;
    const ptrdiff_t n = pairs - i < block ? pairs - i : block;
    for (ptrdiff_t column = 0; column < columns; column += W) {
      I acc[P][1];
      clear(acc);
      dot(acc, at, n, weights + 2 * (i * columns + column), 2 * columns);
      for (int p = 0; p < count; ++p) S::add_to(sums + p * columns + column, acc[p][0]);
    }
  }
}

// sums[row, 16 * groups] += x[row, 2 * pairs] times packed weights [pairs, 16 * groups, 2].
// Sums of products of a softmax weight and an activation, for any number of products.
void accumulate(const int16_t* x, ptrdiff_t x_stride, ptrdiff_t rows, ptrdiff_t pairs,
                const int16_t* weights, int groups, int64_t* sums) {
  constexpr int P = S::rows;
  for (ptrdiff_t row = 0; row < rows; row += P) {
    const int count = static_cast<int>(rows - row < P ? rows - row : P);
    const int16_t* at[P];
    for (int p = 0; p < P; ++p) at[p] = x + (row + (p < count ? p : count - 1)) * x_stride;
    accumulate_tile(at, count, pairs, weights, groups, sums + row * groups * kGroup);
  }
}

void quantise_ratio(const float* r, float divisor, float real_scale, float scale, int16_t* out,
                    ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; i += W) {
    const F real = S::mul(S::div(S::load(r + i, count - i), S::set(divisor)), S::set(real_scale));
    S::narrow(out + i, quantise(real, S::set(scale)), count - i);
  }
}

void quantise_all(const float* r, float scale, int16_t* out, ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; i += W) {
    S::narrow(out + i, quantise(S::load(r + i, count - i), S::set(scale)), count - i);
  }
}

void squares(const float* r, float scale, int16_t* high, int16_t* low, ptrdiff_t count) {
  constexpr int part = 1 << kSquareBits;
  const F limit = S::set(static_cast<float>(part * part - 1));
  for (ptrdiff_t i = 0; i < count; i += W) {
    const F x = S::load(r + i, count - i);
    const F square = S::min(S::mul(S::mul(x, x), S::set(scale)), limit);
    const I whole = S::round(square);
    const I upper = S::truncate(S::mul(S::to_float(whole), S::set(1.0f / part)));
    S::narrow(high + i, upper, count - i);
    S::narrow(low + i, S::dot(whole, upper, S::set(-part)), count - i);
  }
}

template <bool Inverse>
void normalise_by(const float* r, const float* norm, const float* skip, float scale, int16_t* out,
                  ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; i += W) {
    const ptrdiff_t left = count - i;
    const F root = S::sqrt(S::load(norm + i, left));
    const F x = S::load(r + i, left);
    const F y = Inverse ? S::mul(x, root) : S::div(x, root);
    S::narrow(out + i, quantise(S::add(y, S::load(skip + i, left)), S::set(scale)), left);
  }
}

void normalise(const float* r, const float* norm, const float* skip, bool inverse, float scale,
               int16_t* out, ptrdiff_t count) {
  (inverse ? normalise_by<true> : normalise_by<false>)(r, norm, skip, scale, out, count);
}

void to_bytes(const float* r, uint8_t* out, ptrdiff_t count) {
  int16_t rounded[W];
  for (ptrdiff_t i = 0; i < count; i += W) {
    const ptrdiff_t left = count - i < W ? count - i : W;
    const F x = S::min(S::max(S::load(r + i, left), S::set(0.0f)), S::set(255.0f));
    S::narrow(rounded, S::round(x), left);
    for (ptrdiff_t j = 0; j < left; ++j) out[i + j] = static_cast<uint8_t>(rounded[j]);
  }
}

void add_half_tanh(const float* r, float* y, ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; i += W) {
    const ptrdiff_t left = count - i;
    S::store(y + i, S::add(S::load(y + i, left), half_tanh(S::load(r + i, left))), left);
  }
}

// ---- Latents ----

void scale_indexes(const float* s, const float* bounds, int bound_count, uint8_t* out,
                   ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; i += W) {
    const ptrdiff_t left = count - i < W ? count - i : W;
    const F x = S::load(s + i, left);
    I index = S::zero();
    for (int b = 0; b < bound_count && S::any_above(x, S::set(bounds[b])); b += 4) {
      const int last = b + 4 < bound_count ? b + 4 : bound_count;
      for (int j = b; j < last; ++j) index = S::add_unless_le(index, x, S::set(bounds[j]));
    }
    int32_t indexes[W];
    S::store(indexes, index);
    for (ptrdiff_t j = 0; j < left; ++j) out[i + j] = static_cast<uint8_t>(indexes[j]);
  }
}

void symbols(const float* y, const float* means, int32_t* out, ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; i += W) {
    const ptrdiff_t left = count - i < W ? count - i : W;
    const F x = S::zero_unless_ordered(S::sub(S::load(y + i, left), S::load(means + i, left)));
    int32_t rounded[W];
    S::store(rounded, S::round(clamp(x, kSymbolLimit)));
    memcpy(out + i, rounded, static_cast<size_t>(left) * sizeof(int32_t));
  }
}

void decoded(const int32_t* symbols, const float* means, float* y, ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; i += W) {
    const ptrdiff_t left = count - i;
    const F symbol = S::to_float(S::load(symbols + i, left));
    S::store(y + i, S::add(symbol, S::load(means + i, left)), left);
  }
}

uint32_t digest(const float* y, uint32_t first, uint32_t step, ptrdiff_t count) {
  uint32_t total = 0;
  for (ptrdiff_t i = 0; i < count; ++i) {
    uint32_t h;
    memcpy(&h, y + i, sizeof h);
    h = h == 0x80000000 ? 0 : h;  // negative zero
    h += first + static_cast<uint32_t>(i) * step;
    h = (h ^ h >> 16) * 0x85ebca6b;
    h = (h ^ h >> 13) * 0xc2b2ae35;
    total += h ^ h >> 16;
  }
  return total;
}

// ---- Window attention ----

// Attention of one window and head. Queries lie side by side in lanes, keys one below the other, so
// the softmax needs no sums or maxima across lanes.
struct WindowScratch {
  alignas(64) int32_t queries[kMaxDepth / 2 * kWindowLanes];  // pairs of channels
  alignas(64) float logits[kTokens * kWindowLanes];
  alignas(64) int32_t weights[kWindow * kRowPairs * kWindowLanes];  // pairs of keys
  float totals[kWindowLanes];
  float reciprocals[kWindowLanes];
};

// The lanes of a row of the window overlap with those of the next, which is copied later.
inline void gather_queries(const WindowAttention& a, const int32_t* q, ptrdiff_t pairs,
                           int32_t* to) {
  constexpr int first_lanes = kWindowLanes - (kWindow - 1) * kRowLanes;
  const ptrdiff_t plane = a.padded_positions;
  for (ptrdiff_t i = 0; i < pairs; ++i, q += plane, to += kWindowLanes) {
    for (int row = 0; row < kWindow; ++row) {
      memcpy(to + row * kRowLanes, q + row * a.padded_width, first_lanes * sizeof(int32_t));
    }
  }
}

// For V vectors of queries: products of the softmax weights and values need these pairs of keys.
// An anchor query (limit -infinity) has the anchors as keys, any other has all.
template <int V>
inline void window_weights(const WindowAttention& a, const int16_t* keys, ptrdiff_t pairs,
                           const float* bias, const bool* anchor, const float* limits, int lane,
                           WindowScratch& scratch) {
  constexpr int P = kWindow;
  F top[V];
  for (int v = 0; v < V; ++v) top[v] = S::set(-__builtin_inff());
  for (int row = 0; row < kWindow; ++row) {
    const int16_t* k[P];
    for (int p = 0; p < P; ++p) k[p] = keys + (row * a.padded_width + p) * a.heads * 2 * pairs;
    I acc[P][V];
    clear(acc);
    dot(acc, k, pairs, reinterpret_cast<const int16_t*>(scratch.queries + lane), 2 * kWindowLanes);
    unroll<P>([&](auto p) MLIC_LAMBDA {
      const int token = row * P + p;
      unroll<V>([&](auto v) MLIC_LAMBDA {
        const ptrdiff_t at = lane + v * W;
        F x = S::mul(S::to_float(acc[p][v]), S::set(a.logit_scale));
        x = S::add(x, S::load(bias + token * kWindowLanes + at));
        if (!anchor[token]) x = S::min(x, S::load(limits + at));
        top[v] = S::max(top[v], x);
        S::store(scratch.logits + token * kWindowLanes + at, x);
      });
    });
  }
  for (int v = 0; v < V; ++v) {
    const ptrdiff_t at = lane + v * W;
    I total = S::zero();
    for (int row = 0; row < kWindow; ++row) {
      const float* logits = scratch.logits + row * kWindow * kWindowLanes + at;
      F x[kWindow];
      I p[2 * kRowPairs];
      unroll<kWindow>(
          [&](auto i) MLIC_LAMBDA { x[i] = S::sub(S::load(logits + i * kWindowLanes), top[v]); });
      exp_int<kWindow>(x, p);
      unroll<kWindow>([&](auto i) MLIC_LAMBDA { total = S::add(total, p[i]); });
      p[kWindow] = S::zero();
      for (int i = 0; i < kRowPairs; ++i) {
        S::store(scratch.weights + (row * kRowPairs + i) * kWindowLanes + at,
                 S::pair(p[2 * i], p[2 * i + 1]));
      }
    }
    const F real = S::to_float(total);
    S::store(scratch.totals + at, real);
    S::store(scratch.reciprocals + at, S::div(S::set(1.0f), real));
  }
}

// A row of queries times V vectors of columns.
template <int V>
inline void window_values(const WindowAttention& a, const WindowScratch& scratch, int row,
                          const int16_t* values, ptrdiff_t value_step, ptrdiff_t left,
                          int16_t* out) {
  constexpr int P = kWindow;
  I acc[P][V];
  clear(acc);
  const int32_t* weights = scratch.weights + row * kRowLanes;
  for (int r = 0; r < kWindow; ++r) {
    const int16_t* p[P];
    for (int i = 0; i < P; ++i) {
      p[i] = reinterpret_cast<const int16_t*>(weights + r * kRowPairs * kWindowLanes + i);
    }
    dot(acc, p, kRowPairs, values + r * a.padded_width * value_step, 2 * value_step,
        2 * kWindowLanes);
  }
  for (int i = 0; i < P; ++i) {
    const F total = S::set(scratch.totals[row * kRowLanes + i]);
    const F reciprocal = S::set(scratch.reciprocals[row * kRowLanes + i]);
    for (int v = 0; v < V; ++v) {
      const F ratio = S::quotient(S::to_float(acc[i][v]), total, reciprocal);
      const F real = S::mul(ratio, S::set(a.value_scale));
      S::narrow(out + ptrdiff_t{i} * a.heads * a.depth + v * W, quantise(real, S::set(a.out_scale)),
                left - v * W);
    }
  }
}

void window(const WindowAttention& a, ptrdiff_t batch, ptrdiff_t y, ptrdiff_t x, int16_t* out) {
  constexpr int V = 2;
  const float infinity = __builtin_inff();
  const ptrdiff_t pairs = (a.depth + 1) / 2;
  const ptrdiff_t columns = (a.depth + kGroup - 1) / kGroup * kGroup;
  const ptrdiff_t value_step = a.heads * columns * 2;

  bool anchor[kTokens];
  float limits[kWindowLanes];
  for (float& limit : limits) limit = infinity;
  for (int t = 0; t < kTokens; ++t) {
    const ptrdiff_t yy = y + t / kWindow - kWindow / 2;
    const ptrdiff_t xx = x + t % kWindow - kWindow / 2;
    const bool inside = yy >= 0 && yy < a.height && xx >= 0 && xx < a.width;
    anchor[t] = inside && t % 2 == 1;  // the centre, token 12, is a non-anchor
    if (anchor[t]) limits[t / kWindow * kRowLanes + t % kWindow] = -infinity;
  }

  const ptrdiff_t corner = y * a.padded_width + x;
  const ptrdiff_t position = batch * a.padded_positions + corner;
  WindowScratch scratch;
  for (int head = 0; head < a.heads; ++head) {
    const ptrdiff_t planes = (batch * a.heads + head) * pairs * a.padded_positions;
    gather_queries(a, a.q + planes + corner, pairs, scratch.queries);
    const int16_t* keys = a.k + (position * a.heads + head) * 2 * pairs;
    const float* bias = a.bias + ptrdiff_t{head} * kTokens * kWindowLanes;
    for (int lane = 0; lane < kWindowLanes; lane += V * W) {
      window_weights<V>(a, keys, pairs, bias, anchor, limits, lane, scratch);
    }
    for (int row = 0; row < kWindow; ++row) {
      int16_t* to = out + (ptrdiff_t{row} * kWindow * a.heads + head) * a.depth;
      for (ptrdiff_t column = 0; column < a.depth; column += V * W) {
        const int16_t* values = a.v + position * value_step + (head * columns + column) * 2;
        const ptrdiff_t left = a.depth - column;
        if (columns - column >= V * W) {
          window_values<V>(a, scratch, row, values, value_step, left, to + column);
        } else {
          window_values<1>(a, scratch, row, values, value_step, left, to + column);
        }
      }
    }
  }
}

void window_attention(const WindowAttention& a, ptrdiff_t row) {
  const ptrdiff_t batch = row / a.height;
  const ptrdiff_t y = row % a.height;
  const ptrdiff_t size = ptrdiff_t{kTokens} * a.heads * a.depth;
  int16_t* out = a.out + row * (a.width / 2) * size;
  for (ptrdiff_t x = y % 2; x < a.width; x += 2, out += size) {
    window(a, batch, y, x, out);
  }
}

// ---- Linear attention ----

void linear_keys(const LinearKeys& a, int64_t* sums, int64_t* totals) {
  constexpr int P = S::rows;
  constexpr ptrdiff_t block = kProductsInt32;  // positions
  const ptrdiff_t columns = (a.depth + kGroup - 1) / kGroup * kGroup;
  const F scale = S::set(a.scale);
  // Pairs of positions: [block / 2, kMaxDepth, 2] each.
  alignas(64) int32_t weights[block / 2 * kMaxDepth];
  alignas(64) int32_t values[block / 2 * kMaxDepth];

  alignas(64) int32_t top[kMaxDepth];
  for (ptrdiff_t c = 0; c < columns; c += W) {
    I largest = S::widen(a.k + c, a.depth - c);
    for (ptrdiff_t n = 1; n < a.positions; ++n) {
      largest = S::max(largest, S::widen(a.k + n * a.k_stride + c, a.depth - c));
    }
    S::store(top + c, largest);
  }
  for (ptrdiff_t begin = 0; begin < a.positions; begin += block) {
    const ptrdiff_t count = a.positions - begin < block ? a.positions - begin : block;
    const ptrdiff_t pairs = (count + 1) / 2;
    for (ptrdiff_t c = 0; c < columns; c += W) {
      const I largest = S::load(top + c);
      const auto logits = [&](ptrdiff_t n) {
        const I x = S::sub(S::widen(a.k + (begin + n) * a.k_stride + c, a.depth - c), largest);
        return S::mul(S::to_float(x), scale);
      };
      I total = S::zero();
      for (ptrdiff_t i = 0; i < pairs; ++i) {
        const ptrdiff_t even = 2 * i;
        const ptrdiff_t odd = 2 * i + 1 < count ? even + 1 : even;
        const F x[2] = {logits(even), logits(odd)};
        I p[2];
        exp_int<2>(x, p);
        if (odd == even) p[1] = S::zero();
        total = S::add(total, S::add(p[0], p[1]));
        S::store(weights + i * kMaxDepth + c, S::pair(p[0], p[1]));
        const int16_t* v = a.v + (begin + even) * a.v_stride + c;
        const int16_t* next = v + (odd - even) * a.v_stride;
        S::store(values + i * kMaxDepth + c,
                 S::pair(S::widen(v, a.depth - c), S::widen(next, a.depth - c)));
      }
      S::add_to(totals + c, total);
    }
    for (ptrdiff_t d = 0; d < a.depth; d += P) {
      const ptrdiff_t rows = a.depth - d < P ? a.depth - d : P;
      const int16_t* x[P];
      for (int p = 0; p < P; ++p) {
        x[p] = reinterpret_cast<const int16_t*>(weights + d + (p < rows ? p : rows - 1));
      }
      for (ptrdiff_t column = 0; column < columns; column += W) {
        I acc[P][1];
        clear(acc);
        dot(acc, x, pairs, reinterpret_cast<const int16_t*>(values + column), 2 * kMaxDepth,
            2 * kMaxDepth);
        for (int p = 0; p < rows; ++p) {
          S::add_to(sums + (d + p) * columns + column, acc[p][0]);
        }
      }
    }
  }
}

// float(a + b), rounded once: both halves of the sum are exact.
inline F float_of_sum(I a, I b) {
  const I high = S::add(S::shift_right_16(a), S::shift_right_16(b));
  const I low = S::add(S::low_half(a), S::low_half(b));
  return S::add(S::mul(S::to_float(high), S::set(65536.0f)), S::to_float(low));
}

// Softmax weights of N queries over their channels, padded to pairs, and their sums.
template <int N>
MLIC_INLINE void query_weights(const int16_t* const (&q)[N], ptrdiff_t depth, F scale,
                               const float* limits, int16_t (&weights)[N][kMaxDepth],
                               float (&totals)[N]) {
  const auto at = [&](int p, ptrdiff_t d) MLIC_LAMBDA {
    return S::min(S::to_float(S::widen(q[p] + d, depth - d)), S::load(limits + d));
  };
  F top[N];
  I total[N];
  for (int p = 0; p < N; ++p) {
    F largest = at(p, 0);
    for (ptrdiff_t d = W; d < depth; d += W) largest = S::max(largest, at(p, d));
    top[p] = S::set(S::horizontal_max(largest));
    total[p] = S::zero();
  }
  constexpr int together = 2;
  static_assert(N % together == 0);
  for (ptrdiff_t d = 0; d < depth; d += W) {
    for (int p = 0; p < N; p += together) {
      F x[together];
      I exponentials[together];
      unroll<together>([&](auto i)
                           MLIC_LAMBDA { x[i] = S::mul(S::sub(at(p + i, d), top[p + i]), scale); });
      exp_int<together>(x, exponentials);
      unroll<together>([&](auto i) MLIC_LAMBDA {
        total[p + i] = S::add(total[p + i], exponentials[i]);
        S::narrow(weights[p + i] + d, exponentials[i], W);
      });
    }
  }
  for (int p = 0; p < N; ++p) totals[p] = static_cast<float>(S::horizontal_add(total[p]));
}

void linear_queries(const LinearQueries& a, ptrdiff_t count) {
  constexpr int P = S::rows;
  constexpr ptrdiff_t block = kProductsInt32 / 2;
  const ptrdiff_t pairs = (a.depth + 1) / 2;
  const ptrdiff_t columns = (a.depth + kGroup - 1) / kGroup * kGroup;
  const ptrdiff_t first = pairs < block ? pairs : block;
  float limits[kMaxDepth];
  for (ptrdiff_t d = 0; d < kMaxDepth; ++d) {
    limits[d] = d < a.depth ? __builtin_inff() : -__builtin_inff();
  }
  alignas(64) int16_t weights[P][kMaxDepth];
  for (ptrdiff_t begin = 0; begin < count; begin += P) {
    const ptrdiff_t rows = count - begin < P ? count - begin : P;
    float totals[P], reciprocals[P];
    const int16_t* q[P];
    const int16_t* x[P];
    for (int p = 0; p < P; ++p) {
      q[p] = a.q + (begin + (p < rows ? p : rows - 1)) * a.q_stride;
      x[p] = weights[p];
    }
    query_weights<P>(q, a.depth, S::set(a.scale), limits, weights, totals);
    for (int p = 0; p < P; ++p) reciprocals[p] = 1.0f / totals[p];
    for (ptrdiff_t column = 0; column < columns; column += W) {
      I low[P][1];
      I high[P][1];
      clear(low);
      clear(high);
      dot(low, x, first, a.context + 2 * column, 2 * columns);
      if (pairs > block) {
        const int16_t* rest[P];
        for (int p = 0; p < P; ++p) rest[p] = x[p] + 2 * block;
        dot(high, rest, pairs - block, a.context + 2 * (block * columns + column), 2 * columns);
      }
      for (int p = 0; p < rows; ++p) {
        const F sum = float_of_sum(low[p][0], high[p][0]);
        const F ratio = S::quotient(sum, S::set(totals[p]), S::set(reciprocals[p]));
        const F real = S::mul(ratio, S::set(a.real_scale));
        S::narrow(a.out + (begin + p) * a.out_stride + column, quantise(real, S::set(a.out_scale)),
                  a.depth - column);
      }
    }
  }
}

// ---- Softmax attention ----

// Below every logit; the difference to one still fits int32 (depth <= 64).
constexpr int32_t kNoLogit = -(1 << 30);

// Calls f(first, last) for the runs of keys in begin .. end that this query excludes: those within
// Chebyshev distance 2. Column 2j + 1 - r % 2 of row r is anchor j, column 2j + r % 2 non-anchor j.
template <class Function>
inline void for_excluded(const SoftmaxAttention& a, ptrdiff_t query, ptrdiff_t begin, ptrdiff_t end,
                         Function&& f) {
  if (!a.exclude) return;
  const ptrdiff_t row = query / a.query_width;
  const ptrdiff_t column = 2 * (query % a.query_width) + row % 2;
  for (ptrdiff_t r = row - kExcludedRadius; r <= row + kExcludedRadius; ++r) {
    if (r < 0) continue;
    const ptrdiff_t shift = 1 - r % 2;
    ptrdiff_t low = column - kExcludedRadius - shift;  // 2j >= low
    ptrdiff_t high = column + kExcludedRadius - shift;
    low = low <= 0 ? 0 : (low + 1) / 2;
    high = high < 0 ? -1 : high / 2;
    if (high > a.key_width - 1) high = a.key_width - 1;
    ptrdiff_t from = r * a.key_width + low;
    ptrdiff_t to = r * a.key_width + high + 1;
    if (from < begin) from = begin;
    if (to > end) to = end;
    if (from < to) f(from - begin, to - begin);
  }
}

struct Queries {
  const int16_t* x[kQueryRows];
  ptrdiff_t index[kQueryRows];
};

// Logits of all queries with the keys from `begin` on; kNoLogit where excluded or past the end.
inline void softmax_logits(const SoftmaxAttention& a, const Queries& queries, ptrdiff_t begin,
                           int32_t (&logits)[kQueryRows][kKeyBlock]) {
  const ptrdiff_t end = begin + kKeyBlock < a.key_count ? begin + kKeyBlock : a.key_count;
  constexpr int P = S::rows < kQueryRows ? S::rows : kQueryRows;
  for (int row = 0; row < kQueryRows; row += P) {
    const int16_t* x[P];
    for (int p = 0; p < P; ++p) x[p] = queries.x[row + p < kQueryRows ? row + p : kQueryRows - 1];
    for (ptrdiff_t key = begin; key < end; key += kGroup) {
      const int16_t* keys = a.keys + key * 2 * a.pairs;
      for (int v = 0; v < kGroupVectors; ++v) {
        I acc[P][1];
        clear(acc);
        dot(acc, x, a.pairs, keys + 2 * W * v, 2 * kGroup);
        for (int p = 0; p < P && row + p < kQueryRows; ++p) {
          S::store(logits[row + p] + (key - begin) + v * W, acc[p][0]);
        }
      }
    }
  }
  for (int row = 0; row < kQueryRows; ++row) {
    int32_t* l = logits[row];
    for (ptrdiff_t i = end - begin; i < kKeyBlock; ++i) l[i] = kNoLogit;
    for_excluded(a, queries.index[row], begin, end, [&](ptrdiff_t from, ptrdiff_t to) {
      for (ptrdiff_t i = from; i < to; ++i) l[i] = kNoLogit;
    });
  }
}

void softmax_attention(const SoftmaxAttention& a, ptrdiff_t first, int count, int64_t* sums,
                       int64_t* totals) {
  Queries queries;
  for (int row = 0; row < kQueryRows; ++row) {
    queries.index[row] = first + (row < count ? row : count - 1);
    queries.x[row] = a.q + queries.index[row] * a.query_stride;
  }
  alignas(64) int32_t logits[kQueryRows][kKeyBlock];
  alignas(64) int16_t weights[kQueryRows][kKeyBlock];

  I top[kQueryRows];
  for (int row = 0; row < kQueryRows; ++row) top[row] = S::set(kNoLogit);
  for (ptrdiff_t begin = 0; begin < a.key_count; begin += kKeyBlock) {
    softmax_logits(a, queries, begin, logits);
    for (int row = 0; row < kQueryRows; ++row) {
      for (int i = 0; i < kKeyBlock; i += W) top[row] = S::max(top[row], S::load(logits[row] + i));
    }
  }
  for (int row = 0; row < kQueryRows; ++row) {
    top[row] = S::set(S::horizontal_max(top[row]));
    totals[row] = 0;
  }

  const F scale = S::set(a.logit_scale);
  for (ptrdiff_t begin = 0; begin < a.key_count; begin += kKeyBlock) {
    const ptrdiff_t end = begin + kKeyBlock < a.key_count ? begin + kKeyBlock : a.key_count;
    softmax_logits(a, queries, begin, logits);
    for (int row = 0; row < kQueryRows; ++row) {
      constexpr int N = 4;
      static_assert(kKeyBlock % (N * W) == 0);
      for (int i = 0; i < kKeyBlock; i += N * W) {
        F x[N];
        I exponentials[N];
        unroll<N>([&](auto v) MLIC_LAMBDA {
          x[v] = S::mul(S::to_float(S::sub(S::load(logits[row] + i + v * W), top[row])), scale);
        });
        exp_int<N>(x, exponentials);
        unroll<N>([&](auto v)
                      MLIC_LAMBDA { S::narrow(weights[row] + i + v * W, exponentials[v], W); });
      }
      int16_t* p = weights[row];
      for (ptrdiff_t i = end - begin; i < kKeyBlock; ++i) p[i] = 0;
      for_excluded(a, queries.index[row], begin, end, [&](ptrdiff_t from, ptrdiff_t to) {
        for (ptrdiff_t i = from; i < to; ++i) p[i] = 0;
      });
      for (int i = 0; i < kKeyBlock; ++i) totals[row] += p[i];
    }
    const ptrdiff_t pairs = (end - begin + 1) / 2;
    accumulate(weights[0], kKeyBlock, kQueryRows, pairs, a.values + begin * a.value_groups * kGroup,
               a.value_groups, sums);
  }
}

// ---- Peak ----

int64_t peak(int64_t iterations) {
  constexpr int V = S::tile_groups * kGroupVectors;
  constexpr int P = rows_of(V);
  I acc[P][V];
  clear(acc);
  int16_t memory[V * 2 * W];
  for (int i = 0; i < V * 2 * W; ++i) memory[i] = static_cast<int16_t>(i);
  const int16_t* w = memory;
  asm volatile("" : "+r"(w) : : "memory");  // the compiler knows nothing of what lies there
  S::Pair x = S::set_pair(w);
  S::Column column[V];
  unroll<V>([&](auto v) MLIC_LAMBDA { column[v] = S::load_column(w + 2 * W * v); });
  for (int64_t i = 0; i < iterations; ++i) {
    unroll<P>([&](auto p) MLIC_LAMBDA {
      S::opaque(x);  // or products would be taken out of the loop
      unroll<V>([&](auto v) MLIC_LAMBDA { acc[p][v] = S::dot(acc[p][v], x, column[v]); });
    });
  }
  I total = S::zero();
  unroll<P * V>([&](auto i) MLIC_LAMBDA { total = S::add(total, acc[i / V][i % V]); });
  return S::horizontal_add(total) == -1 ? 0 : iterations * P * V * 2 * W;
}

constexpr Kernels kKernels = {kLayout,
                              &conv,
                              &winograd,
                              &depthwise,
                              &layer_norm,
                              &window_attention,
                              &linear_keys,
                              &linear_queries,
                              &softmax_attention,
                              &quantise_ratio,
                              &quantise_all,
                              &squares,
                              &normalise,
                              &to_bytes,
                              &add_half_tanh,
                              &scale_indexes,
                              &symbols,
                              &decoded,
                              &digest,
                              &peak};

}  // namespace
}  // namespace mlic::exact
