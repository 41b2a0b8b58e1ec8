// AMX int8 beside AVX-512: the kernels of avx512.cpp, but for convolutions on tiles of bytes. Built
// with these options where the compiler knows them; empty elsewhere.
#if defined(__AMX_INT8__) && defined(__AVX512VBMI__) && defined(__AVX512VNNI__)
#include "exact/simd_avx512.h"
// After the vectors.
#include "exact/kernels_impl.h"

namespace mlic::exact {
namespace {

// The compiler does not know that tiles are loaded from memory.
MLIC_INLINE void finish_writing(const void* p) { asm volatile("" : : "r"(p) : "memory"); }

// Eight tiles of 16 rows of 64 bytes, as long as it lives.
class Tiles {
 public:
  Tiles() {
    alignas(64) Configuration all{};
    all.palette = 1;
    for (int i = 0; i < 8; ++i) {
      all.row_bytes[i] = kTileChannels;
      all.rows[i] = kTileRows;
    }
    finish_writing(&all);
    _tile_loadconfig(&all);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

 private:
  struct Configuration {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };
};

// A row of every tile of one position: 64 integers become their high bytes and, a tile later, their
// low bytes; zeros beyond `count`.
void split(const int16_t* x, ptrdiff_t count, int8_t* to) {
  alignas(64) static constexpr auto odd = [] {
    struct {
      int8_t index[64];
    } bytes{};
    for (int i = 0; i < 64; ++i) bytes.index[i] = static_cast<int8_t>(2 * i + 1);
    return bytes;
  }();
  const I high = _mm512_load_si512(odd.index);
  const I low = _mm512_sub_epi8(high, _mm512_set1_epi8(1));
  const I carry = _mm512_set1_epi16(128);
  const auto first = [](ptrdiff_t n) {
    return n >= 32 ? ~__mmask32{0} : n <= 0 ? 0 : (__mmask32{1} << n) - 1;
  };
  for (; count > 0; count -= kTileChannels, x += kTileChannels, to += 2 * kTileBytes) {
    const I a = _mm512_maskz_loadu_epi16(first(count), x);
    const I b = _mm512_maskz_loadu_epi16(first(count - 32), x + 32);
    const I up =
        _mm512_permutex2var_epi8(_mm512_add_epi16(a, carry), high, _mm512_add_epi16(b, carry));
    _mm512_store_si512(to, up);
    _mm512_store_si512(to + kTileBytes, _mm512_permutex2var_epi8(a, low, b));
  }
}

// Inputs of the products at 16 positions, in tiles: [blocks of all segments][high, low][16][64].
// The last position stands for those beyond `count`. `line` is memory for all inputs of one
// position.
void split_positions(const Conv& c, ptrdiff_t begin, ptrdiff_t count, int16_t* line, int8_t* to) {
  for (int i = 0; i < c.segment_count; ++i) {
    const Segment& s = c.segments[i];
    const ptrdiff_t row = 2 * s.pairs;
    for (ptrdiff_t p = 0; p < kTileRows; ++p) {
      const ptrdiff_t n = begin + (p < count ? p : count - 1);
      const int16_t* x = s.x + c.corners[n] * s.position_stride;
      if (c.rows > 1) {
        for (int r = 0; r < c.rows; ++r) {
          memcpy(line + r * row, x + r * s.row_stride, static_cast<size_t>(row) * sizeof(int16_t));
        }
        x = line;
      }
      split(x, c.rows * row, to + p * kTileChannels);
    }
    to += tile_blocks(c.rows * row) * 2 * kTileBytes;
  }
}

struct Sums {
  alignas(64) int32_t high[kTileRows][kGroup];
  alignas(64) int32_t middle[2][kTileRows][kGroup];
  alignas(64) int32_t low[kTileRows][kGroup];
};

// Products of 16 positions and 16 outputs. There are four sums, since a product waits for the one
// before it that goes into the same tile.
MLIC_INLINE void multiply(const int8_t* x, const int8_t* w, ptrdiff_t blocks, Sums& sums) {
  finish_writing(x);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (; blocks > 0; --blocks, x += 2 * kTileBytes, w += 2 * kTileBytes) {
    _tile_loadd(4, x, kTileChannels);
    _tile_loadd(6, w, kTileChannels);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(7, w + kTileBytes, kTileChannels);
    _tile_dpbssd(1, 4, 7);
    _tile_loadd(5, x + kTileBytes, kTileChannels);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  _tile_stored(0, sums.high, kTileChannels);
  _tile_stored(1, sums.middle[0], kTileChannels);
  _tile_stored(2, sums.middle[1], kTileChannels);
  _tile_stored(3, sums.low, kTileChannels);
}

// Row p of the sum of all products. The sum fits int32 even where a part of it does not.
inline I sum_of(const Sums& sums, ptrdiff_t p) {
  const I middle = S::add(S::load(sums.middle[0][p]), S::load(sums.middle[1][p]));
  const I upper = S::add(_mm512_slli_epi32(S::load(sums.high[p]), 8), middle);
  return S::add(_mm512_slli_epi32(upper, 8), S::load(sums.low[p]));
}

// One group of outputs at `count` positions, at most 16, from `begin` on.
void tile(const Conv& c, int group, ptrdiff_t begin, int count, const int8_t* x) {
  constexpr int P = kTileRows;
  ptrdiff_t n[P];
  for (int p = 0; p < P; ++p) n[p] = begin + (p < count ? p : count - 1);
  const ptrdiff_t o = ptrdiff_t{group} * kGroup;
  F r[P][1];
  if (c.partial == nullptr) {
    const F bias = S::load(c.bias + o, c.outputs - o);
    for (int p = 0; p < P; ++p) r[p][0] = bias;
  } else {
    for (int p = 0; p < P; ++p) {
      r[p][0] = S::load(c.partial + n[p] * c.outputs + o, c.outputs - o);
    }
  }
  Sums sums;
  for (int i = 0; i < c.segment_count; ++i) {
    const Segment& s = c.segments[i];
    const ptrdiff_t blocks = tile_blocks(c.rows * 2 * s.pairs);
    const auto* w = static_cast<const int8_t*>(s.weights) + group * blocks * 2 * kTileBytes;
    multiply(x, w, blocks, sums);
    x += blocks * 2 * kTileBytes;
    const F m = S::mul(S::load(s.scales + o, c.outputs - o), S::set(s.unit));
    for (int p = 0; p < P; ++p) {
      r[p][0] = S::add(r[p][0], S::mul(S::to_float(sum_of(sums, p)), m));
    }
  }
  finish(c, n, count, o, r);
}

void conv_of_tiles(const Conv& c, int first, int last, ptrdiff_t begin, ptrdiff_t end,
                   void* scratch) {
  const Tiles tiles;
  const int groups = (c.outputs + kGroup - 1) / kGroup;
  const Panel last_panel = panel_of(Layout::kTiles, groups, last - 1);
  const ptrdiff_t tile_bytes = conv_blocks(c) * 2 * kTileBytes;
  const ptrdiff_t step = conv_tiles(c) * kTileRows;
  auto* split = static_cast<int8_t*>(scratch);
  auto* line = reinterpret_cast<int16_t*>(split + conv_tiles(c) * tile_bytes);
  const auto count_at = [&](ptrdiff_t n) {
    return static_cast<int>(end - n < kTileRows ? end - n : kTileRows);
  };
  for (; begin < end; begin += step) {
    const ptrdiff_t stop = begin + step < end ? begin + step : end;
    int8_t* x = split;
    for (ptrdiff_t n = begin; n < stop; n += kTileRows, x += tile_bytes) {
      split_positions(c, n, count_at(n), line, x);
    }
    for (int group = panel_of(Layout::kTiles, groups, first).first;
         group < last_panel.first + last_panel.groups; ++group) {
      x = split;
      for (ptrdiff_t n = begin; n < stop; n += kTileRows, x += tile_bytes) {
        tile(c, group, n, count_at(n), x);
      }
    }
  }
}

int64_t tile_peak(int64_t iterations) {
  const Tiles tiles;
  for (int64_t i = 0; i < iterations; ++i) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  return iterations * kTileRows * kGroup * kTileChannels;
}

constexpr Kernels kTileKernels = [] {
  Kernels kernels = kKernels;
  kernels.layout = Layout::kTiles;
  kernels.conv = &conv_of_tiles;
  kernels.peak = &tile_peak;
  return kernels;
}();

}  // namespace

const Kernels* amx_kernels() { return &kTileKernels; }

}  // namespace mlic::exact
#else
#include "exact/kernels.h"
namespace mlic::exact {
const Kernels* amx_kernels() { return nullptr; }
}  // namespace mlic::exact
#endif
