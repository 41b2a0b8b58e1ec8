// Plain C++, four lanes at a time.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace mlic::exact {
namespace {

struct Simd {
  static constexpr int width = 4;
  static constexpr int rows = 2;
  static constexpr int tile_groups = 1;

  struct F {
    float v[width];
  };
  struct I {
    int32_t v[width];
  };
  using Pair = I;    // the same pair of integers in every lane
  using Column = I;  // a pair for each lane

  template <class To, class Op>
  static To map(Op&& op) {
    To r;
    for (int i = 0; i < width; ++i) r.v[i] = op(i);
    return r;
  }
  static size_t bytes(ptrdiff_t n, size_t size) {
    return static_cast<size_t>(n <= 0 ? 0 : n >= width ? width : n) * size;
  }
  // Sums wrap around.
  static int32_t wrap_add(int32_t a, int32_t b) {
    return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
  }

  static F load(const float* p) { return load(p, width); }
  static F load(const float* p, ptrdiff_t n) {
    F r = {};
    std::memcpy(r.v, p, bytes(n, sizeof(float)));
    return r;
  }
  static void store(float* p, F a) { store(p, a, width); }
  static void store(float* p, F a, ptrdiff_t n) { std::memcpy(p, a.v, bytes(n, sizeof(float))); }
  static F set(float a) {
    return map<F>([=](int) { return a; });
  }
  static F add(F a, F b) {
    return map<F>([&](int i) { return a.v[i] + b.v[i]; });
  }
  static F sub(F a, F b) {
    return map<F>([&](int i) { return a.v[i] - b.v[i]; });
  }
  static F mul(F a, F b) {
    return map<F>([&](int i) { return a.v[i] * b.v[i]; });
  }
  static F div(F a, F b) {
    return map<F>([&](int i) { return a.v[i] / b.v[i]; });
  }
  static F quotient(F a, F b, F /*reciprocal*/) { return div(a, b); }  // see simd_avx512.h
  static F sqrt(F a) {
    return map<F>([&](int i) { return std::sqrt(a.v[i]); });
  }
  static F min(F a, F b) {
    return map<F>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  static F max(F a, F b) {
    return map<F>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static F to_float(I a) {
    return map<F>([&](int i) { return static_cast<float>(a.v[i]); });
  }
  // |a| < 2^22: adding 1.5 * 2^23 rounds to nearest, ties to even.
  static I round(F a) {
    constexpr float magic = 12582912.0f;
    return map<I>([&](int i) { return static_cast<int32_t>((a.v[i] + magic) - magic); });
  }
  static I truncate(F a) {
    return map<I>([&](int i) { return static_cast<int32_t>(a.v[i]); });
  }
  static F from_bits(I a) {
    F r;
    std::memcpy(r.v, a.v, sizeof r.v);
    return r;
  }
  static F zero_unless_ordered(F a) {
    return map<F>([&](int i) { return a.v[i] == a.v[i] ? a.v[i] : 0.0f; });
  }
  // count + 1 where a <= b is false, also for NaN.
  static I add_unless_le(I count, F a, F b) {
    return map<I>([&](int i) { return count.v[i] + (a.v[i] <= b.v[i] ? 0 : 1); });
  }
  // Whether a <= b is false anywhere, also for NaN.
  static bool any_above(F a, F b) {
    bool any = false;
    for (int i = 0; i < width; ++i) any |= !(a.v[i] <= b.v[i]);
    return any;
  }
  static float horizontal_max(F a) {
    float top = a.v[0];
    for (int i = 1; i < width; ++i) top = a.v[i] > top ? a.v[i] : top;
    return top;
  }

  static I set(int32_t a) {
    return map<I>([=](int) { return a; });
  }
  static I zero() { return set(0); }
  static I add(I a, I b) {
    return map<I>([&](int i) { return wrap_add(a.v[i], b.v[i]); });
  }
  static I sub(I a, I b) {
    return map<I>([&](int i) {
      return static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) - static_cast<uint32_t>(b.v[i]));
    });
  }
  static I max(I a, I b) {
    return map<I>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static I shift_left_23(I a) {
    return map<I>([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) << 23); });
  }
  static I shift_right_2(I a) {
    return map<I>([&](int i) { return a.v[i] >> 2; });
  }
  static I shift_right_16(I a) {
    return map<I>([&](int i) { return a.v[i] >> 16; });
  }
  static I low_half(I a) {
    return map<I>([&](int i) { return a.v[i] & 0xffff; });
  }
  static I load(const int32_t* p) { return load(p, width); }
  static I load(const int32_t* p, ptrdiff_t n) {
    I r = {};
    std::memcpy(r.v, p, bytes(n, sizeof(int32_t)));
    return r;
  }
  static void store(int32_t* p, I a) { std::memcpy(p, a.v, sizeof a.v); }
  static int32_t horizontal_add(I a) {
    int32_t sum = 0;
    for (const int32_t value : a.v) sum = wrap_add(sum, value);
    return sum;
  }
  static int32_t horizontal_max(I a) {
    int32_t top = a.v[0];
    for (int i = 1; i < width; ++i) top = a.v[i] > top ? a.v[i] : top;
    return top;
  }

  static I widen(const int16_t* p, ptrdiff_t n) {
    int16_t padded[width] = {};
    std::memcpy(padded, p, bytes(n, sizeof(int16_t)));
    return map<I>([&](int i) { return static_cast<int32_t>(padded[i]); });
  }
  static void narrow(int16_t* p, I a, ptrdiff_t n) {
    int16_t all[width];
    for (int i = 0; i < width; ++i) all[i] = static_cast<int16_t>(a.v[i]);
    std::memcpy(p, all, bytes(n, sizeof(int16_t)));
  }

  // The lower halves of both, in the order of memory: as load_column would load them.
  static I pair(I low, I high) {
    int16_t pairs[2 * width];
    for (int i = 0; i < width; ++i) {
      pairs[2 * i] = static_cast<int16_t>(low.v[i]);
      pairs[2 * i + 1] = static_cast<int16_t>(high.v[i]);
    }
    return load_column(pairs);
  }
  static Column load_column(const int16_t* p) {
    I r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
  }
  static Pair set_pair(const int16_t* p) {
    int32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return set(pair);
  }
  static I dot(I a, I x, I y) {
    return map<I>([&](int i) {
      const int32_t even = int32_t{static_cast<int16_t>(x.v[i])} * static_cast<int16_t>(y.v[i]);
      const int32_t odd = (x.v[i] >> 16) * (y.v[i] >> 16);
      return wrap_add(a.v[i], wrap_add(even, odd));
    });
  }

  // The compiler takes a to have changed.
  template <class T>
  static void opaque(T& a) {
    asm volatile("" : "+m"(a));
  }

  static void add_to(int64_t* p, I a) {
    for (int i = 0; i < width; ++i) p[i] += a.v[i];
  }
};

}  // namespace
}  // namespace mlic::exact
