// NEON, which every ARM64 has.
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace mlic::exact {
namespace {

struct Simd {
  using F = float32x4_t;
  using I = int32x4_t;
  using Pair = int16x4_t;      // in its first two lanes
  using Column = int16x4x2_t;  // the first and the second integers of 4 pairs
  static constexpr int width = 4;
  // 4 x 4 accumulators and 8 vectors of weights: with a fifth row the weights would not fit.
  static constexpr int rows = 4;
  static constexpr int tile_groups = 1;

  static size_t bytes(ptrdiff_t n, size_t size) {
    return static_cast<size_t>(n <= 0 ? 0 : n) * size;
  }

  static F load(const float* p) { return vld1q_f32(p); }
  static F load(const float* p, ptrdiff_t n) {
    if (n >= width) return load(p);
    float padded[width] = {};
    std::memcpy(padded, p, bytes(n, sizeof(float)));
    return load(padded);
  }
  static void store(float* p, F a) { vst1q_f32(p, a); }
  static void store(float* p, F a, ptrdiff_t n) {
    if (n >= width) return store(p, a);
    float all[width];
    store(all, a);
    std::memcpy(p, all, bytes(n, sizeof(float)));
  }
  static F set(float a) { return vdupq_n_f32(a); }
  static F add(F a, F b) { return vaddq_f32(a, b); }
  static F sub(F a, F b) { return vsubq_f32(a, b); }
  static F mul(F a, F b) { return vmulq_f32(a, b); }
  static F div(F a, F b) { return vdivq_f32(a, b); }
  static F quotient(F a, F b, F /*reciprocal*/) { return div(a, b); }  // see simd_avx512.h
  static F sqrt(F a) { return vsqrtq_f32(a); }
  // The second operand where one is NaN, unlike the instructions of that name.
  static F min(F a, F b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
  static F max(F a, F b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static F to_float(I a) { return vcvtq_f32_s32(a); }
  static I round(F a) { return vcvtnq_s32_f32(a); }
  static I truncate(F a) { return vcvtq_s32_f32(a); }
  static F from_bits(I a) { return vreinterpretq_f32_s32(a); }
  static F zero_unless_ordered(F a) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a), vceqq_f32(a, a)));
  }
  // count + 1 where a <= b is false, also for NaN.
  static I add_unless_le(I count, F a, F b) {
    return sub(count, vreinterpretq_s32_u32(vmvnq_u32(vcleq_f32(a, b))));
  }
  // Whether a <= b is false anywhere, also for NaN.
  static bool any_above(F a, F b) { return vminvq_u32(vcleq_f32(a, b)) == 0; }
  static float horizontal_max(F a) { return vmaxvq_f32(a); }

  static I set(int32_t a) { return vdupq_n_s32(a); }
  static I zero() { return vdupq_n_s32(0); }
  static I add(I a, I b) { return vaddq_s32(a, b); }
  static I sub(I a, I b) { return vsubq_s32(a, b); }
  static I max(I a, I b) { return vmaxq_s32(a, b); }
  static I shift_left_23(I a) { return vshlq_n_s32(a, 23); }
  static I shift_right_2(I a) { return vshrq_n_s32(a, 2); }
  static I shift_right_16(I a) { return vshrq_n_s32(a, 16); }
  static I low_half(I a) { return vandq_s32(a, set(0xffff)); }
  static I load(const int32_t* p) { return vld1q_s32(p); }
  static I load(const int32_t* p, ptrdiff_t n) {
    if (n >= width) return load(p);
    int32_t padded[width] = {};
    std::memcpy(padded, p, bytes(n, sizeof(int32_t)));
    return load(padded);
  }
  static void store(int32_t* p, I a) { vst1q_s32(p, a); }
  static int32_t horizontal_add(I a) { return vaddvq_s32(a); }
  static int32_t horizontal_max(I a) { return vmaxvq_s32(a); }

  static I widen(const int16_t* p, ptrdiff_t n) {
    if (n >= width) return vmovl_s16(vld1_s16(p));
    int16_t padded[width] = {};
    std::memcpy(padded, p, bytes(n, sizeof(int16_t)));
    return vmovl_s16(vld1_s16(padded));
  }
  static void narrow(int16_t* p, I a, ptrdiff_t n) {
    const int16x4_t packed = vmovn_s32(a);
    if (n >= width) return vst1_s16(p, packed);
    int16_t all[width];
    vst1_s16(all, packed);
    std::memcpy(p, all, bytes(n, sizeof(int16_t)));
  }

  // The lower halves of both.
  static I pair(I low, I high) { return vsliq_n_s32(low, high, 16); }
  static Pair set_pair(const int16_t* p) {
    int32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return vreinterpret_s16_s32(vdup_n_s32(pair));
  }
  static Column load_column(const int16_t* p) { return vld2_s16(p); }
  static I dot(I a, Pair x, Column y) {
    return vmlal_lane_s16(vmlal_lane_s16(a, y.val[0], x, 0), y.val[1], x, 1);
  }
  static I dot(I a, I x, I y) {
    const int16x8_t s = vreinterpretq_s16_s32(x);
    const int16x8_t t = vreinterpretq_s16_s32(y);
    const int32x4_t low = vmull_s16(vget_low_s16(s), vget_low_s16(t));
    return vaddq_s32(a, vpaddq_s32(low, vmull_high_s16(s, t)));
  }

  // The compiler takes a to have changed.
  template <class T>
  static void opaque(T& a) {
    asm volatile("" : "+w"(a));
  }

  static void add_to(int64_t* p, I a) {
    vst1q_s64(p, vaddw_s32(vld1q_s64(p), vget_low_s32(a)));
    vst1q_s64(p + 2, vaddw_high_s32(vld1q_s64(p + 2), a));
  }
};

}  // namespace
}  // namespace mlic::exact
