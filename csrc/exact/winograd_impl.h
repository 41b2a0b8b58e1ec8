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
// where it fits int32. That is nearly always so, and known beforehand: by Cauchy and Schwarz y^2 is
// at most the sum of the squares of the inputs times that of the weights. Where these exceed what
// is needed, channels are taken in parts that fit with any inputs (weights.h), and y of all is
// their sum.
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

// The inputs of one window of a tile, of channel 0 each; zeros outside the image.
void find_inputs(const Winograd& s, ptrdiff_t tile, ptrdiff_t down, ptrdiff_t right,
                 const int16_t* (&x)[16]) {
  const ptrdiff_t tiles_across = (s.width + 1) / 2, tiles_down = (s.height + 1) / 2;
  const ptrdiff_t left = 2 * (tile % tiles_across + right) - s.shifts;
  const ptrdiff_t top = 2 * (tile / tiles_across % tiles_down + down) - s.shifts;
  const int16_t* image =
      s.x + tile / (tiles_across * tiles_down) * s.height * s.width * s.position_stride;
  for (int i = 0; i < 16; ++i) {
    const ptrdiff_t y = top + i / 4, column = left + i % 4;
    const bool inside = y >= 0 && y < s.height && column >= 0 && column < s.width;
    x[i] = inside ? image + (y * s.width + column) * s.position_stride : s.zeros;
  }
}

// The sum of their squares, within some units in the last place.
float sum_squares(const int16_t* const (&x)[16], ptrdiff_t channels) {
  F sum = S::set(0.0f);
  for (ptrdiff_t c = 0; c < channels; c += H) {
    I squares = S::zero();  // at most 16 * 2 * 4095^2
    unroll<16>([&](auto i) MLIC_LAMBDA {
      I pairs;
      memcpy(&pairs, x[i] + c, sizeof pairs);
      squares = S::dot(squares, pairs, pairs);
    });
    sum = S::add(sum, S::to_float(squares));
  }
  float lanes[W];
  S::store(lanes, sum);
  float total = 0.0f;
  for (const float lane : lanes) total += lane;
  return total;
}

// What the products of a tile's window are of, [16][channels], `step` apart.
void transform_inputs(const int16_t* const (&x)[16], ptrdiff_t channels, ptrdiff_t step,
                      int16_t* to) {
  for (ptrdiff_t c = 0; c < channels; c += H) {
    Half rows[4][4];
    unroll<4>([&](auto i) MLIC_LAMBDA {
      const auto load = [&](int j) MLIC_LAMBDA { return load_half(x[4 * i + j] + c); };
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

// Products of some tiles' inputs, `stride` apart, and V vectors of columns: [tiles][columns]. They
// are added to those before if `add`. (Not inlined, so that all pointers stay in registers.)
template <int V>
__attribute__((noinline)) void multiply_tiles(const int16_t* x, ptrdiff_t stride, ptrdiff_t pairs,
                                              const int16_t* w, ptrdiff_t columns, bool add,
                                              int32_t* m) {
  constexpr int P = rows_of(V);
  const int16_t* at[P];
  for (int p = 0; p < P; ++p) at[p] = x + p * stride;
  I acc[P][V];
  clear(acc);
  dot(acc, at, pairs, w, 2 * columns);
  unroll<P * V>([&](auto i) MLIC_LAMBDA {
    int32_t* to = m + i / V * columns + i % V * W;
    S::store(to, add ? S::add(S::load(to), acc[i / V][i % V]) : acc[i / V][i % V]);
  });
}

// Of one window of some tiles, `stride` apart.
struct TileInputs {
  const int16_t* x;
  ptrdiff_t tiles, stride, pairs;
};

// All columns of a panel.
void multiply_panel(const TileInputs& in, bool add, const int16_t* w, int groups, int32_t* m) {
  const ptrdiff_t columns = ptrdiff_t{groups} * kGroup;
  for_columns(groups, [&](auto vectors, int column) {
    constexpr int P = rows_of(vectors);
    static_assert(kWinogradTiles % P == 0);
    for (ptrdiff_t n = 0; n < in.tiles; n += P) {
      multiply_tiles<vectors>(in.x + n * in.stride, in.stride, in.pairs, w + 2 * column, columns,
                              add, m + n * columns + column);
    }
  });
}

// What the products of tiles, [4][4][columns] with `step` from one product to the next, contribute
// to their outputs, [tiles][2][2][columns]: added to those before if `add`.
void transform_outputs(const int32_t* m, ptrdiff_t step, ptrdiff_t tiles, ptrdiff_t columns,
                       bool add, int32_t* outputs) {
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
      const auto put = [&](int32_t* to, I four) MLIC_LAMBDA {
        const I sum = S::shift_right_2(four);
        S::store(to, add ? S::add(S::load(to), sum) : sum);
      };
      unroll<2>([&](auto j) MLIC_LAMBDA {
        int32_t* to = outputs + (4 * tile + j) * columns + c;
        put(to, S::add(twice(rows[0][j]), S::add(rows[1][j], rows[2][j])));
        put(to + 2 * columns, S::sub(S::sub(rows[1][j], rows[2][j]), twice(rows[3][j])));
      });
    }
  }
}

// Some tiles at once: where their numbers lie. All are of one panel but the inputs.
struct TileBlock {
  ptrdiff_t begin, tiles;
  ptrdiff_t room;    // `tiles`, up to a multiple of kWinogradTiles
  int16_t* x;        // [shifts][shifts][16][room][channels]
  int32_t* m;        // [16][room][columns]
  int32_t* outputs;  // [tiles][2][2][columns]
};

// Fills the inputs. Whether four times any output fits int32 with all channels at once.
bool transform_block(const Winograd& s, const TileBlock& block) {
  const ptrdiff_t step = block.room * s.channels;
  bool fits = true;
  for (ptrdiff_t i = 0; i < block.tiles; ++i) {
    float squares = 0.0f;
    for (ptrdiff_t window = 0; window < s.shifts * s.shifts; ++window) {
      const int16_t* x[16];
      find_inputs(s, block.begin + i, window / s.shifts, window % s.shifts, x);
      squares += sum_squares(x, s.channels);
      transform_inputs(x, s.channels, step, block.x + 16 * window * step + i * s.channels);
    }
    fits &= squares <= s.most_squares;
  }
  return fits;
}

// Adds to the outputs of a panel, unless they are the first, the products of channels first ..
// first + part.
void add_part(const Winograd& s, const Panel& panel, ptrdiff_t first, ptrdiff_t part,
              const TileBlock& block) {
  const ptrdiff_t columns = ptrdiff_t{panel.groups} * kGroup;
  const ptrdiff_t step = block.room * s.channels;
  const int16_t* w =
      s.weights + winograd_products(s.shifts) * panel.first * kGroup * s.channels + first * columns;
  for (ptrdiff_t i = 0; i < 16; ++i) {
    bool add = false;
    for (ptrdiff_t window = 0; window < s.shifts * s.shifts; ++window) {
      if (!winograd_uses(s.shifts, window / s.shifts, i / 4)) continue;
      if (!winograd_uses(s.shifts, window % s.shifts, i % 4)) continue;
      const TileInputs in{block.x + (16 * window + i) * step + first, block.tiles, s.channels,
                          part / 2};
      multiply_panel(in, add, w, panel.groups, block.m + i * block.room * columns);
      w += s.channels * columns;
      add = true;
    }
  }
  transform_outputs(block.m, block.room * columns, block.tiles, columns, first > 0, block.outputs);
}

// Where the outputs of tiles lie that are not cut off at an edge: their positions and sums.
struct TileOutputs {
  ptrdiff_t positions[4 * kMostWinogradTiles];
  int tiles[4 * kMostWinogradTiles];  // index in outputs, in steps of a panel's columns
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

// What follows the sums of V vectors of a panel's columns, from output `first` on.
template <int V>
void finish_columns(const Conv& c, const Winograd& s, ptrdiff_t first, const TileOutputs& found,
                    const int32_t* outputs, ptrdiff_t columns) {
  constexpr int P = rows_of(V);
  F start[V], m[V];
  unroll<V>([&](auto v) MLIC_LAMBDA {
    const ptrdiff_t o = first + v * W;
    m[v] = S::mul(S::load(s.scales + o, c.outputs - o), S::set(s.unit));
    start[v] = c.partial == nullptr ? S::load(c.bias + o, c.outputs - o) : S::set(0.0f);
  });
  for (ptrdiff_t k = 0; k < found.count; k += P) {
    const int some = static_cast<int>(found.count - k < P ? found.count - k : P);
    ptrdiff_t n[P];
    F r[P][V];
    for (int p = 0; p < P; ++p) {
      const ptrdiff_t at = k + (p < some ? p : some - 1);
      n[p] = found.positions[at];
      const int32_t* sums = outputs + found.tiles[at] * columns;
      unroll<V>([&](auto v) MLIC_LAMBDA {
        const ptrdiff_t o = first + v * W;
        if (c.partial != nullptr) {
          start[v] = S::load(c.partial + n[p] * c.outputs + o, c.outputs - o);
        }
        r[p][v] = S::add(start[v], S::mul(S::to_float(S::load(sums + v * W)), m[v]));
      });
    }
    finish(c, n, some, first, r);
  }
}

// All columns of a panel.
void finish_panel(const Conv& c, const Winograd& s, const Panel& panel, const TileOutputs& found,
                  const int32_t* outputs) {
  const ptrdiff_t columns = ptrdiff_t{panel.groups} * kGroup;
  const ptrdiff_t first = ptrdiff_t{panel.first} * kGroup;
  for_columns(panel.groups, [&](auto vectors, int column) {
    finish_columns<vectors>(c, s, first + column, found, outputs + column, columns);
  });
}

void winograd(const Conv& c, const Winograd& s, ptrdiff_t begin, ptrdiff_t end, void* scratch) {
  const int groups = (c.outputs + kGroup - 1) / kGroup;
  const ptrdiff_t most = winograd_tiles(s, c.outputs);
  TileBlock block;
  block.m = static_cast<int32_t*>(scratch);
  block.outputs = block.m + 16 * most * kMostPanelGroups * kGroup;
  block.x = reinterpret_cast<int16_t*>(block.outputs + 4 * most * kMostPanelGroups * kGroup);
  for (block.begin = begin; block.begin < end; block.begin += most) {
    block.tiles = end - block.begin < most ? end - block.begin : most;
    block.room = (block.tiles + kWinogradTiles - 1) / kWinogradTiles * kWinogradTiles;
    const ptrdiff_t part = transform_block(s, block) ? s.channels : s.part;
    const TileOutputs found = find_outputs(s, block.begin, block.tiles);
    for (int index = 0; index < panel_count(kLayout, groups); ++index) {
      const Panel panel = panel_of(kLayout, groups, index);
      for (ptrdiff_t first = 0; first < s.channels; first += part) {
        add_part(s, panel, first, s.channels - first < part ? s.channels - first : part, block);
      }
      finish_panel(c, s, panel, found, block.outputs);
    }
  }
}

}  // namespace
}  // namespace mlic::exact
