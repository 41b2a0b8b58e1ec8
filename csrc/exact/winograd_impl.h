// Convolutions of 3x3 at all positions with 16 products where the direct sum has 36, and of 5x5
// with 49 where it has 100: the minimal filtering F(2x2, 3x3) of Winograd (Lavin and Gray, "Fast
// Algorithms for Convolutional Neural Networks", 2016), in integers and therefore without any loss.
//
// Of one dimension, with inputs d and weights g, the outputs are
//
//   2 y0 = 2 m0 + m1 + m2         m0 = (d0 - d2) g0             m2 = (d2 - d1) (g0 - g1 + g2)
//   2 y1 = m1 - m2 - 2 m3         m1 = (d1 + d2) (g0 + g1 + g2) m3 = (d1 - d3) g2
//
// and of two dimensions 4 y. Sums may wrap around: they are right modulo 2^32, so 4 y is right
// where it fits int32. That is so for a part of the channels (weights.h), and y of all is their
// sum.
//
// Five weights are two, and three for inputs two further on. Of the two, g2 is zero and with it m3;
// so there are seven products for both, whose m0, m1 and m2 add up before y is made of them.
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

// `left` of the integers at least; beyond them zero.
inline Half load_half(const int16_t* p, ptrdiff_t left) {
  if (left >= H) return load_half(p);
  Half a = {};
  memcpy(&a, p, static_cast<size_t>(left) * sizeof(int16_t));
  return a;
}

// Of one window of tiles begin .. end, what their products are of: [16][end - begin][row] of the
// channels first .. first + part.
void transform_inputs(const Winograd& s, ptrdiff_t begin, ptrdiff_t end, ptrdiff_t down,
                      ptrdiff_t right, ptrdiff_t first, ptrdiff_t part, int16_t* to) {
  const ptrdiff_t tiles_across = (s.width + 1) / 2, tiles_down = (s.height + 1) / 2;
  const ptrdiff_t row = winograd_row(s.part);
  const ptrdiff_t step = (end - begin) * row;
  for (ptrdiff_t tile = begin; tile < end; ++tile, to += row) {
    const ptrdiff_t left = 2 * (tile % tiles_across + right) - s.shifts;
    const ptrdiff_t top = 2 * (tile / tiles_across % tiles_down + down) - s.shifts;
    const int16_t* image =
        s.x + tile / (tiles_across * tiles_down) * s.height * s.width * s.position_stride;
    const int16_t* x[16];
    for (int i = 0; i < 16; ++i) {
      const ptrdiff_t y = top + i / 4, column = left + i % 4;
      const bool inside = y >= 0 && y < s.height && column >= 0 && column < s.width;
      x[i] = inside ? image + (y * s.width + column) * s.position_stride : s.zeros;
    }
    for (ptrdiff_t c = 0; c < part; c += H) {
      const ptrdiff_t at = first + c;
      Half rows[4][4];
      unroll<4>([&](auto i) MLIC_LAMBDA {
        const auto load = [&](int j) { return load_half(x[4 * i + j] + at, s.channels - at); };
        const Half d[4] = {load(0), load(1), load(2), load(3)};
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

// Of one window of some tiles, `stride` apart.
struct TileInputs {
  const int16_t* x;
  ptrdiff_t tiles, stride, pairs;
};

// Products of tiles' inputs and V vectors of columns: [tiles][columns]. They are added to those of
// other windows unless these are the first.
template <int V>
inline void multiply_tiles(const TileInputs& in, bool add, const int16_t* w, ptrdiff_t columns,
                           int32_t* m) {
  constexpr int P = S::rows;
  for (ptrdiff_t n = 0; n < in.tiles; n += P) {
    const int16_t* at[P];
    for (int p = 0; p < P; ++p) {
      at[p] = in.x + (n + p < in.tiles ? n + p : in.tiles - 1) * in.stride;
    }
    I acc[P][V];
    clear(acc);
    dot(acc, at, in.pairs, w, 2 * columns);
    for (int p = 0; p < P && n + p < in.tiles; ++p) {
      unroll<V>([&](auto v) MLIC_LAMBDA {
        int32_t* to = m + (n + p) * columns + v * W;
        S::store(to, add ? S::add(S::load(to), acc[p][v]) : acc[p][v]);
      });
    }
  }
}

// All columns of a panel.
void multiply_panel(const TileInputs& in, bool add, const int16_t* w, int groups, int32_t* m) {
  const ptrdiff_t columns = ptrdiff_t{groups} * kGroup;
  if constexpr (S::tile_groups == 3) {
    if (groups == 3) return multiply_tiles<3 * kGroupVectors>(in, add, w, columns, m);
    if (groups == 2) return multiply_tiles<2 * kGroupVectors>(in, add, w, columns, m);
  }
  for (int group = 0; group < groups; ++group, w += 2 * kGroup, m += kGroup) {
    multiply_tiles<kGroupVectors>(in, add, w, columns, m);
  }
}

// Adds to the outputs of all tiles, [tiles][2][2][columns], what their products, [4][4][tiles][
// columns], contribute.
void transform_outputs(const int32_t* m, ptrdiff_t tiles, ptrdiff_t columns, int32_t* outputs) {
  const ptrdiff_t step = tiles * columns;
  const auto twice = [](I a) { return S::add(a, a); };
  for (ptrdiff_t tile = 0; tile < tiles; ++tile) {
    for (ptrdiff_t c = 0; c < columns; c += W) {
      const int32_t* from = m + tile * columns + c;
      I rows[4][2];
      unroll<4>([&](auto i) MLIC_LAMBDA {
        const int32_t* row = from + 4 * i * step;
        const I m1 = S::load(row + step), m2 = S::load(row + 2 * step);
        rows[i][0] = S::add(twice(S::load(row)), S::add(m1, m2));
        rows[i][1] = S::sub(S::sub(m1, m2), twice(S::load(row + 3 * step)));
      });
      unroll<2>([&](auto j) MLIC_LAMBDA {
        const I upper = S::add(twice(rows[0][j]), S::add(rows[1][j], rows[2][j]));
        const I lower = S::sub(S::sub(rows[1][j], rows[2][j]), twice(rows[3][j]));
        int32_t* to = outputs + (4 * tile + j) * columns + c;
        S::store(to, S::add(S::load(to), S::shift_right_2(upper)));
        to += 2 * columns;
        S::store(to, S::add(S::load(to), S::shift_right_2(lower)));
      });
    }
  }
}

// Where the memory of a block of tiles lies. All are of one panel but the inputs and the outputs.
struct TileMemory {
  int16_t* x;        // [shifts][shifts][16][tiles][row]
  int32_t* m;        // [16][tiles][columns]
  int32_t* outputs;  // of panel after panel, [tiles][2][2][columns]
};

// Adds to the outputs of a panel the products of channels first .. first + part.
void add_part(const Winograd& s, const Panel& panel, ptrdiff_t first, ptrdiff_t part,
              ptrdiff_t tiles, const TileMemory& memory, int32_t* outputs) {
  const ptrdiff_t columns = ptrdiff_t{panel.groups} * kGroup;
  const ptrdiff_t row_size = winograd_row(s.part);
  const ptrdiff_t step = tiles * row_size;
  const ptrdiff_t products = winograd_products(s.shifts);
  const int16_t* w = s.weights + products * (panel.first * kGroup * s.channels + first * columns);
  for (ptrdiff_t i = 0; i < 16; ++i) {
    bool add = false;
    for (ptrdiff_t window = 0; window < s.shifts * s.shifts; ++window) {
      if (!winograd_uses(s.shifts, window / s.shifts, i / 4)) continue;
      if (!winograd_uses(s.shifts, window % s.shifts, i % 4)) continue;
      const TileInputs in{memory.x + (16 * window + i) * step, tiles, row_size, part / 2};
      multiply_panel(in, add, w, panel.groups, memory.m + i * tiles * columns);
      w += part * columns;
      add = true;
    }
  }
  transform_outputs(memory.m, tiles, columns, outputs);
}

// Where the outputs of tiles lie that are not cut off at an edge: their positions and sums.
struct TileOutputs {
  ptrdiff_t positions[4 * kWinogradTiles];
  int tiles[4 * kWinogradTiles];  // index in outputs, in steps of a panel's columns
  ptrdiff_t count;
};

TileOutputs find_outputs(const Winograd& s, ptrdiff_t begin, ptrdiff_t tiles) {
  const ptrdiff_t across = (s.width + 1) / 2, down = (s.height + 1) / 2;
  TileOutputs found;
  found.count = 0;
  for (int i = 0; i < 4 * tiles; ++i) {
    const ptrdiff_t tile = begin + i / 4;
    const ptrdiff_t row = tile / across % down * 2 + i / 2 % 2;
    const ptrdiff_t column = tile % across * 2 + i % 2;
    if (row >= s.height || column >= s.width) continue;
    found.positions[found.count] = (tile / (across * down) * s.height + row) * s.width + column;
    found.tiles[found.count++] = i;
  }
  return found;
}

// What follows the sums of a panel, for V vectors of columns of a group.
template <int V>
void finish_tiles(const Conv& c, const Winograd& s, const Panel& panel, int group,
                  const TileOutputs& found, const int32_t* outputs) {
  constexpr int P = S::rows;
  const ptrdiff_t first = ptrdiff_t{group} * kGroup;
  const ptrdiff_t columns = ptrdiff_t{panel.groups} * kGroup;
  outputs += first - ptrdiff_t{panel.first} * kGroup;
  for (ptrdiff_t k = 0; k < found.count; k += P) {
    const int some = static_cast<int>(found.count - k < P ? found.count - k : P);
    const int32_t* sums[P];
    ptrdiff_t n[P];
    for (int p = 0; p < P; ++p) {
      const ptrdiff_t i = k + (p < some ? p : some - 1);
      n[p] = found.positions[i];
      sums[p] = outputs + found.tiles[i] * columns;
    }
    F r[P][V];
    for (int v = 0; v < V; ++v) {
      const ptrdiff_t o = first + v * W;
      const F m = S::mul(S::load(s.scales + o, c.outputs - o), S::set(s.unit));
      for (int p = 0; p < P; ++p) {
        const F start = c.partial == nullptr
                            ? S::load(c.bias + o, c.outputs - o)
                            : S::load(c.partial + n[p] * c.outputs + o, c.outputs - o);
        r[p][v] = S::add(start, S::mul(S::to_float(S::load(sums[p] + v * W)), m));
      }
      finish(c, n, some, v, o, r);
    }
  }
}

void winograd(const Conv& c, const Winograd& s, ptrdiff_t begin, ptrdiff_t end, void* scratch) {
  constexpr ptrdiff_t most = kWinogradTiles, widest = kPanelGroups * kGroup;
  const int groups = (c.outputs + kGroup - 1) / kGroup, panels = panel_count(groups);
  TileMemory memory;
  memory.m = static_cast<int32_t*>(scratch);
  memory.outputs = memory.m + 16 * most * widest;
  memory.x = reinterpret_cast<int16_t*>(memory.outputs + 4 * most * groups * kGroup);
  for (; begin < end; begin += most) {
    const ptrdiff_t tiles = end - begin < most ? end - begin : most;
    const ptrdiff_t window = 16 * tiles * winograd_row(s.part);
    memset(memory.outputs, 0, static_cast<size_t>(4 * tiles * groups * kGroup) * sizeof(int32_t));
    for (ptrdiff_t first = 0; first < s.channels; first += s.part) {
      const ptrdiff_t part = s.channels - first < s.part ? s.channels - first : s.part;
      for (ptrdiff_t i = 0; i < s.shifts * s.shifts; ++i) {
        transform_inputs(s, begin, begin + tiles, i / s.shifts, i % s.shifts, first, part,
                         memory.x + i * window);
      }
      for (int index = 0; index < panels; ++index) {
        const Panel panel = panel_of(groups, index);
        add_part(s, panel, first, part, tiles, memory,
                 memory.outputs + 4 * tiles * panel.first * kGroup);
      }
    }
    const TileOutputs found = find_outputs(s, begin, tiles);
    for (int index = 0; index < panels; ++index) {
      const Panel panel = panel_of(groups, index);
      for (int group = panel.first; group < panel.first + panel.groups; ++group) {
        finish_tiles<kGroupVectors>(c, s, panel, group, found,
                                    memory.outputs + 4 * tiles * panel.first * kGroup);
      }
    }
  }
}

}  // namespace
}  // namespace mlic::exact
