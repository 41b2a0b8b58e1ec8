// Convolutions of 3x3 at all positions with 16 products where the direct sum has 36: the minimal
// filtering F(2x2, 3x3) of Winograd (Lavin and Gray, "Fast Algorithms for Convolutional Neural
// Networks", 2016), in integers and therefore without any loss.
//
// Of one dimension, with inputs d and weights g, the outputs are
//
//   2 y0 = 2 m0 + m1 + m2         m0 = (d0 - d2) g0             m2 = (d2 - d1) (g0 - g1 + g2)
//   2 y1 = m1 - m2 - 2 m3         m1 = (d1 + d2) (g0 + g1 + g2) m3 = (d1 - d3) g2
//
// and of two dimensions 4 y. Sums may wrap around: they are right modulo 2^32, so 4 y is right
// where it fits int32. That is so for a part of the channels (weights.h), and y of all is their
// sum.
#pragma once

namespace mlic::exact {
namespace {

// Twice as many integers as a vector has lanes, of 16 bits.
constexpr int H = 2 * W;
using Half = int16_t __attribute__((vector_size(2 * H)));

inline Half load_half(const int16_t* p) {
  Half a;
  memcpy(&a, p, sizeof a);
  return a;
}

// d0 - d2, d1 + d2, d2 - d1, d1 - d3
inline void transform(const Half (&d)[4], Half (&to)[4]) {
  to[0] = d[0] - d[2];
  to[1] = d[1] + d[2];
  to[2] = d[2] - d[1];
  to[3] = d[1] - d[3];
}

// Of tiles begin .. end, what their products are of: [16][end - begin][channels].
void transform_inputs(const Winograd& s, ptrdiff_t begin, ptrdiff_t end, int16_t* to) {
  const ptrdiff_t across = (s.width + 1) / 2, down = (s.height + 1) / 2;
  const ptrdiff_t step = (end - begin) * s.channels;
  for (ptrdiff_t tile = begin; tile < end; ++tile, to += s.channels) {
    const ptrdiff_t left = 2 * (tile % across) - 1;
    const ptrdiff_t top = 2 * (tile / across % down) - 1;
    const int16_t* image = s.x + tile / (across * down) * s.height * s.width * s.position_stride;
    const int16_t* x[16];
    for (int i = 0; i < 16; ++i) {
      const ptrdiff_t row = top + i / 4, column = left + i % 4;
      const bool inside = row >= 0 && row < s.height && column >= 0 && column < s.width;
      x[i] = inside ? image + (row * s.width + column) * s.position_stride : s.zeros;
    }
    for (ptrdiff_t c = 0; c < s.channels; c += H) {
      Half rows[4][4];
      unroll<4>([&](auto i) MLIC_LAMBDA {
        const Half d[4] = {load_half(x[4 * i] + c), load_half(x[4 * i + 1] + c),
                           load_half(x[4 * i + 2] + c), load_half(x[4 * i + 3] + c)};
        transform(d, rows[i]);
      });
      unroll<4>([&](auto j) MLIC_LAMBDA {
        const Half d[4] = {rows[0][j], rows[1][j], rows[2][j], rows[3][j]};
        Half column[4];
        transform(d, column);
        unroll<4>([&](auto i) MLIC_LAMBDA {
          memcpy(to + (4 * i + j) * step + c, &column[i], sizeof column[i]);
        });
      });
    }
  }
}

// Products of tiles' inputs, `stride` apart, and V vectors of columns: [tiles][columns].
template <int V>
inline void multiply_tiles(const int16_t* x, ptrdiff_t tiles, ptrdiff_t stride, ptrdiff_t pairs,
                           const int16_t* w, ptrdiff_t columns, int32_t* m) {
  constexpr int P = S::rows;
  for (ptrdiff_t n = 0; n < tiles; n += P) {
    const int16_t* at[P];
    for (int p = 0; p < P; ++p) at[p] = x + (n + p < tiles ? n + p : tiles - 1) * stride;
    I acc[P][V];
    clear(acc);
    dot(acc, at, pairs, w, 2 * columns);
    for (int p = 0; p < P && n + p < tiles; ++p) {
      unroll<V>([&](auto v) MLIC_LAMBDA { S::store(m + (n + p) * columns + v * W, acc[p][v]); });
    }
  }
}

// All columns of a panel.
void multiply_panel(const int16_t* x, ptrdiff_t tiles, ptrdiff_t stride, ptrdiff_t pairs,
                    const int16_t* w, int groups, int32_t* m) {
  const ptrdiff_t columns = ptrdiff_t{groups} * kGroup;
  if constexpr (S::tile_groups == 3) {
    if (groups == 3) {
      return multiply_tiles<3 * kGroupVectors>(x, tiles, stride, pairs, w, columns, m);
    }
    if (groups == 2) {
      return multiply_tiles<2 * kGroupVectors>(x, tiles, stride, pairs, w, columns, m);
    }
  }
  for (int group = 0; group < groups; ++group, w += 2 * kGroup, m += kGroup) {
    multiply_tiles<kGroupVectors>(x, tiles, stride, pairs, w, columns, m);
  }
}

// Adds to the outputs of all tiles, [tiles][2 rows][2 columns][columns], what the products of row
// Row of their inputs contribute, [4][tiles][columns]. `sums`, of the same shape, is what rows
// before contributed.
template <int Row>
void transform_outputs(const int32_t* m, ptrdiff_t tiles, ptrdiff_t columns, int32_t* sums,
                       int32_t* outputs) {
  const ptrdiff_t step = tiles * columns;
  const auto twice = [](I a) { return S::add(a, a); };
  for (ptrdiff_t tile = 0; tile < tiles; ++tile) {
    for (ptrdiff_t c = 0; c < columns; c += W) {
      const int32_t* from = m + tile * columns + c;
      const I m1 = S::load(from + step), m2 = S::load(from + 2 * step);
      const I z[2] = {S::add(twice(S::load(from)), S::add(m1, m2)),
                      S::sub(S::sub(m1, m2), twice(S::load(from + 3 * step)))};
      unroll<2>([&](auto j) MLIC_LAMBDA {
        const ptrdiff_t upper = (4 * tile + j) * columns + c, lower = upper + 2 * columns;
        const auto add = [&](ptrdiff_t at, I a) {
          S::store(sums + at, S::add(S::load(sums + at), a));
        };
        const auto finish = [&](ptrdiff_t at, I a) {
          S::store(outputs + at, S::add(S::load(outputs + at), S::shift_right_2(a)));
        };
        if constexpr (Row == 0) S::store(sums + upper, twice(z[j]));
        if constexpr (Row == 1) S::store(sums + lower, z[j]);
        if constexpr (Row == 1 || Row == 2) add(upper, z[j]);
        if constexpr (Row == 2) S::store(sums + lower, S::sub(S::load(sums + lower), z[j]));
        if constexpr (Row == 3) {
          finish(upper, S::load(sums + upper));
          finish(lower, S::sub(S::load(sums + lower), twice(z[j])));
        }
      });
    }
  }
}

// Sums of products of all parts and rows: outputs [tiles][2][2][columns].
void sum_tiles(const Winograd& s, const Panel& panel, const int16_t* x, ptrdiff_t tiles, int32_t* m,
               int32_t* sums, int32_t* outputs) {
  const ptrdiff_t columns = ptrdiff_t{panel.groups} * kGroup;
  const ptrdiff_t step = tiles * s.channels;
  memset(outputs, 0, static_cast<size_t>(4 * tiles * columns) * sizeof(int32_t));
  const int16_t* w = s.weights + panel.first * kGroup * 16 * s.channels;
  for (ptrdiff_t first = 0; first < s.channels; first += s.part) {
    const ptrdiff_t part = s.channels - first < s.part ? s.channels - first : s.part;
    unroll<4>([&](auto row) MLIC_LAMBDA {
      for (int i = 0; i < 4; ++i, w += part * columns) {
        multiply_panel(x + (4 * row + i) * step + first, tiles, s.channels, part / 2, w,
                       panel.groups, m + i * tiles * columns);
      }
      transform_outputs<row>(m, tiles, columns, sums, outputs);
    });
  }
}

// What follows the sums, for V vectors of columns from `first` on.
template <int V>
void finish_tiles(const Conv& c, const Winograd& s, const Panel& panel, int group,
                  const ptrdiff_t* positions, const int32_t* const* sums, ptrdiff_t count) {
  constexpr int P = S::rows;
  const ptrdiff_t first = ptrdiff_t{group} * kGroup;
  const ptrdiff_t within = first - ptrdiff_t{panel.first} * kGroup;
  for (ptrdiff_t k = 0; k < count; k += P) {
    const int some = static_cast<int>(count - k < P ? count - k : P);
    ptrdiff_t n[P];
    for (int p = 0; p < P; ++p) n[p] = positions[k + (p < some ? p : some - 1)];
    F r[P][V];
    for (int v = 0; v < V; ++v) {
      const ptrdiff_t o = first + v * W;
      const F m = S::mul(S::load(s.scales + o, c.outputs - o), S::set(s.unit));
      for (int p = 0; p < P; ++p) {
        const F start = c.partial == nullptr
                            ? S::load(c.bias + o, c.outputs - o)
                            : S::load(c.partial + n[p] * c.outputs + o, c.outputs - o);
        const int32_t* sum = sums[k + (p < some ? p : some - 1)] + within + v * W;
        r[p][v] = S::add(start, S::mul(S::to_float(S::load(sum)), m));
      }
      finish(c, n, some, v, o, r);
    }
  }
}

void winograd(const Conv& c, const Winograd& s, int first, int last, ptrdiff_t begin, ptrdiff_t end,
              void* scratch) {
  constexpr ptrdiff_t most = kWinogradTiles;
  constexpr ptrdiff_t widest = kPanelGroups * kGroup;
  const int groups = (c.outputs + kGroup - 1) / kGroup;
  const ptrdiff_t across = (s.width + 1) / 2, down = (s.height + 1) / 2;
  auto* m = static_cast<int32_t*>(scratch);
  int32_t* sums = m + 4 * most * widest;
  int32_t* outputs = sums + 4 * most * widest;
  auto* x = reinterpret_cast<int16_t*>(outputs + 4 * most * widest);
  for (; begin < end; begin += most) {
    const ptrdiff_t tiles = end - begin < most ? end - begin : most;
    transform_inputs(s, begin, begin + tiles, x);
    for (int index = first; index < last; ++index) {
      const Panel panel = panel_of(groups, index);
      const ptrdiff_t columns = ptrdiff_t{panel.groups} * kGroup;
      sum_tiles(s, panel, x, tiles, m, sums, outputs);
      ptrdiff_t positions[4 * most];
      const int32_t* from[4 * most];
      ptrdiff_t count = 0;
      for (ptrdiff_t i = 0; i < 4 * tiles; ++i) {
        const ptrdiff_t tile = begin + i / 4;
        const ptrdiff_t row = tile / across % down * 2 + i / 2 % 2;
        const ptrdiff_t column = tile % across * 2 + i % 2;
        if (row >= s.height || column >= s.width) continue;
        positions[count] = (tile / (across * down) * s.height + row) * s.width + column;
        from[count++] = outputs + i * columns;
      }
      for (int group = panel.first; group < panel.first + panel.groups; ++group) {
        finish_tiles<kGroupVectors>(c, s, panel, group, positions, from, count);
      }
    }
  }
}

}  // namespace
}  // namespace mlic::exact
