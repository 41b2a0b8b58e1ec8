// AVX-512 F, BW, DQ, VL and VNNI.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace mlic::exact {
namespace {

struct Simd {
  using F = __m512;
  using I = __m512i;
  using Pair = I;    // the same pair of integers in every lane
  using Column = I;  // a pair for each lane
  static constexpr int width = 16;
  // Rows and vectors of a register tile: 8 x 3 accumulators, or 6 x 4.
  static constexpr int rows = 8;
  static constexpr int tile_groups = 4;

  static __mmask16 first(ptrdiff_t n) {
    return n >= 16 ? 0xffff : n <= 0 ? 0 : static_cast<__mmask16>((1u << n) - 1);
  }

  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load(const float* p, ptrdiff_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static void store(float* p, F a) { _mm512_storeu_ps(p, a); }
  static void store(float* p, F a, ptrdiff_t n) { _mm512_mask_storeu_ps(p, first(n), a); }
  static F set(float a) { return _mm512_set1_ps(a); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  // a / b, given 1 / b, in a third of the time of a division. A step of Newton with the reciprocal,
  // rounded correctly, rounds a quotient correctly that is within a unit of the last place
  // (Markstein, IBM J. Res. Dev. 34(1), 1990); the step before brings it there. For numbers and
  // quotients far from the ends of the range; -0 becomes 0.
  static F quotient(F a, F b, F reciprocal) {
    F q = mul(a, reciprocal);
    q = _mm512_fmadd_ps(_mm512_fnmadd_ps(q, b, a), reciprocal, q);
    return _mm512_fmadd_ps(_mm512_fnmadd_ps(q, b, a), reciprocal, q);
  }
  static F sqrt(F a) { return _mm512_sqrt_ps(a); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F to_float(I a) { return _mm512_cvtepi32_ps(a); }
  static I round(F a) { return _mm512_cvtps_epi32(a); }
  static I truncate(F a) { return _mm512_cvttps_epi32(a); }
  static F from_bits(I a) { return _mm512_castsi512_ps(a); }
  static F zero_unless_ordered(F a) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, a, _CMP_ORD_Q), a);
  }
  // count + 1 where a <= b is false, also for NaN.
  static I add_unless_le(I count, F a, F b) {
    const __mmask16 above = _mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ);
    return _mm512_mask_add_epi32(count, above, count, set(1));
  }
  // Whether a <= b is false anywhere, also for NaN.
  static bool any_above(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ) != 0; }
  static float horizontal_max(F a) { return _mm512_reduce_max_ps(a); }

  static I set(int32_t a) { return _mm512_set1_epi32(a); }
  static I zero() { return _mm512_setzero_si512(); }
  static I add(I a, I b) { return _mm512_add_epi32(a, b); }
  static I sub(I a, I b) { return _mm512_sub_epi32(a, b); }
  static I max(I a, I b) { return _mm512_max_epi32(a, b); }
  static I shift_left_23(I a) { return _mm512_slli_epi32(a, 23); }
  static I shift_right_2(I a) { return _mm512_srai_epi32(a, 2); }
  static I shift_right_16(I a) { return _mm512_srai_epi32(a, 16); }
  static I low_half(I a) { return _mm512_and_si512(a, set(0xffff)); }
  static I load(const int32_t* p) { return _mm512_loadu_si512(p); }
  static I load(const int32_t* p, ptrdiff_t n) { return _mm512_maskz_loadu_epi32(first(n), p); }
  static void store(int32_t* p, I a) { _mm512_storeu_si512(p, a); }
  static int32_t horizontal_add(I a) { return _mm512_reduce_add_epi32(a); }
  static int32_t horizontal_max(I a) { return _mm512_reduce_max_epi32(a); }

  // 16-bit integers widened to 32, and back (values that fit).
  static I widen(const int16_t* p, ptrdiff_t n) {
    return _mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(first(n), p));
  }
  static void narrow(int16_t* p, I a, ptrdiff_t n) {
    _mm512_mask_cvtepi32_storeu_epi16(p, first(n), a);
  }

  // Pairs of 16-bit integers.
  // The lower halves of both.
  static I pair(I low, I high) {
    return _mm512_mask_blend_epi16(0xaaaaaaaa, low, _mm512_slli_epi32(high, 16));
  }
  static Column load_column(const int16_t* p) { return _mm512_loadu_si512(p); }
  static Pair set_pair(const int16_t* p) {
    int32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return _mm512_set1_epi32(pair);
  }
  // a + x[2i] y[2i] + x[2i+1] y[2i+1] in each lane, modulo 2^32.
  // Not the intrinsic: with it GCC 12 keeps every accumulator twice, as vectors of 32-bit and of
  // 64-bit integers, and spills (half the speed).
  static I dot(I a, I x, I y) {
    asm("vpdpwssd %2, %1, %0" : "+v"(a) : "v"(x), "v"(y));
    return a;
  }

  // The compiler takes a to have changed.
  template <class T>
  static void opaque(T& a) {
    asm volatile("" : "+v"(a));
  }

  static void add_to(int64_t* p, I a) {
    const __m512i low = _mm512_cvtepi32_epi64(_mm512_castsi512_si256(a));
    const __m512i high = _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(a, 1));
    _mm512_storeu_si512(p, _mm512_add_epi64(_mm512_loadu_si512(p), low));
    _mm512_storeu_si512(p + 8, _mm512_add_epi64(_mm512_loadu_si512(p + 8), high));
  }
};

}  // namespace
}  // namespace mlic::exact
