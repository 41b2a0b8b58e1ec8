// AVX2, with AVX-VNNI where the including file is built for it.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace mlic::exact {
namespace {

struct Simd {
  using F = __m256;
  using I = __m256i;
  using Pair = I;    // the same pair of integers in every lane
  using Column = I;  // a pair for each lane
  static constexpr int width = 8;
  // 6 x 2 accumulators.
  static constexpr int rows = 6;
  static constexpr int tile_groups = 1;

  static size_t bytes(ptrdiff_t n, size_t size) {
    return static_cast<size_t>(n <= 0 ? 0 : n) * size;
  }

  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static F load(const float* p, ptrdiff_t n) {
    if (n >= width) return load(p);
    float padded[width] = {};
    std::memcpy(padded, p, bytes(n, sizeof(float)));
    return load(padded);
  }
  static void store(float* p, F a) { _mm256_storeu_ps(p, a); }
  static void store(float* p, F a, ptrdiff_t n) {
    if (n >= width) return store(p, a);
    float all[width];
    store(all, a);
    std::memcpy(p, all, bytes(n, sizeof(float)));
  }
  static F set(float a) { return _mm256_set1_ps(a); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F quotient(F a, F b, F /*reciprocal*/) { return div(a, b); }  // see simd_avx512.h
  static F sqrt(F a) { return _mm256_sqrt_ps(a); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F to_float(I a) { return _mm256_cvtepi32_ps(a); }
  static I round(F a) { return _mm256_cvtps_epi32(a); }
  static I truncate(F a) { return _mm256_cvttps_epi32(a); }
  static F from_bits(I a) { return _mm256_castsi256_ps(a); }
  static F zero_unless_ordered(F a) { return _mm256_and_ps(a, _mm256_cmp_ps(a, a, _CMP_ORD_Q)); }
  // count + 1 where a <= b is false, also for NaN.
  static I add_unless_le(I count, F a, F b) {
    return sub(count, _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_NLE_UQ)));
  }
  // Whether a <= b is false anywhere, also for NaN.
  static bool any_above(F a, F b) {
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NLE_UQ)) != 0;
  }
  template <class T>
  static T largest(const T (&all)[width]) {
    T top = all[0];
    for (int i = 1; i < width; ++i) top = all[i] > top ? all[i] : top;
    return top;
  }
  static float horizontal_max(F a) {
    float all[width];
    store(all, a);
    return largest(all);
  }

  static I set(int32_t a) { return _mm256_set1_epi32(a); }
  static I zero() { return _mm256_setzero_si256(); }
  static I add(I a, I b) { return _mm256_add_epi32(a, b); }
  static I sub(I a, I b) { return _mm256_sub_epi32(a, b); }
  static I max(I a, I b) { return _mm256_max_epi32(a, b); }
  static I shift_left_23(I a) { return _mm256_slli_epi32(a, 23); }
  static I shift_right_2(I a) { return _mm256_srai_epi32(a, 2); }
  static I shift_right_16(I a) { return _mm256_srai_epi32(a, 16); }
  static I low_half(I a) { return _mm256_and_si256(a, set(0xffff)); }
  static I load(const int32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static I load(const int32_t* p, ptrdiff_t n) {
    if (n >= width) return load(p);
    int32_t padded[width] = {};
    std::memcpy(padded, p, bytes(n, sizeof(int32_t)));
    return load(padded);
  }
  static void store(int32_t* p, I a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
  static int32_t horizontal_add(I a) {
    int32_t all[width];
    store(all, a);
    int32_t sum = 0;
    for (const int32_t value : all) sum += value;
    return sum;
  }
  static int32_t horizontal_max(I a) {
    int32_t all[width];
    store(all, a);
    return largest(all);
  }

  static I widen(const int16_t* p, ptrdiff_t n) {
    if (n >= width) {
      return _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    int16_t padded[width] = {};
    std::memcpy(padded, p, bytes(n, sizeof(int16_t)));
    return _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(padded)));
  }
  static void narrow(int16_t* p, I a, ptrdiff_t n) {
    const __m128i packed =
        _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    if (n >= width) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
      return;
    }
    int16_t all[width];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(all), packed);
    std::memcpy(p, all, bytes(n, sizeof(int16_t)));
  }

  // The lower halves of both.
  static I pair(I low, I high) {
    return _mm256_blend_epi16(low, _mm256_slli_epi32(high, 16), 0xaa);
  }
  static Column load_column(const int16_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static Pair set_pair(const int16_t* p) {
    int32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return _mm256_set1_epi32(pair);
  }
  // Not the intrinsic of the addition, for the reason in simd_avx512.h.
  static I dot(I a, I x, I y) {
#if defined(__AVXVNNI__)
    asm("%{vex%} vpdpwssd %2, %1, %0" : "+x"(a) : "x"(x), "x"(y));
#else
    asm("vpaddd %1, %0, %0" : "+x"(a) : "x"(_mm256_madd_epi16(x, y)));
#endif
    return a;
  }

  // The compiler takes a to have changed.
  template <class T>
  static void opaque(T& a) {
    asm volatile("" : "+x"(a));
  }

  static void add_to(int64_t* p, I a) {
    auto* low = reinterpret_cast<__m256i*>(p);
    auto* high = reinterpret_cast<__m256i*>(p + 4);
    const __m256i first = _mm256_cvtepi32_epi64(_mm256_castsi256_si128(a));
    const __m256i second = _mm256_cvtepi32_epi64(_mm256_extracti128_si256(a, 1));
    _mm256_storeu_si256(low, _mm256_add_epi64(_mm256_loadu_si256(low), first));
    _mm256_storeu_si256(high, _mm256_add_epi64(_mm256_loadu_si256(high), second));
  }
};

}  // namespace
}  // namespace mlic::exact
