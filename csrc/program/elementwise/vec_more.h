// Functions of vectors that torch has and core/vec_math.h does not.
#pragma once

#include "core/vec_special.h"
#include "program/elementwise/lanes.h"

namespace fastnn::FASTNN_ISA {

namespace {

// log(1 + x) for every x: the rounding error of 1 + x changes the logarithm by that error over 1 + x.
template <class T>
FASTNN_INLINE Vec<T> log1p_of(Vec<T> x) {
  const Vec<T> u = x + T(1), logarithm = log(u);
  const Vec<T> near = logarithm + (x - (u - T(1))) / u;
  const Vec<T> value = ((u > T(0)) & (u < T(__builtin_inf()))) ? near : logarithm;
  return u == T(1) ? x : value;
}

// 2^n (e^r - 1) + (2^n - 1), if 2^n is neither 0 nor beyond the largest number; otherwise e^x - 1 loses
// nothing.
template <class T>
FASTNN_INLINE Vec<T> expm1_of(Vec<T> x) {
  using Format = FloatFormat<T>;
  using IntVec = Vec<typename Format::Int>;
  constexpr T kBound = T(40);  // e^40 - 1 rounds to e^40, e^-40 - 1 to -1
  const Vec<T> near = min(max(x, splat(-kBound)), splat(kBound));
  Vec<T> whole;
  IntVec exponent;
  const Vec<T> r = detail::reduce_by_ln2<T>(near, whole, exponent);
  const Vec<T> series = (r * r) * detail::table_series<ExpRest<T>>(r) + r;
  const Vec<T> power = bit_cast<Vec<T>>((exponent + Format::kBias) << Format::kFractionBits);
  const Vec<T> value = power * series + (power - T(1));
  const Vec<T> signed_value = x == T(0) ? x : value;  // -0 is kept
  return x > kBound ? exp(x) : signed_value;
}

// A function of the C library, lane by lane.
template <class V, class F>
FASTNN_INLINE V each_lane(V x, const F& f) {
  constexpr int kCount = static_cast<int>(sizeof(V) / sizeof(x[0]));
  for (int i = 0; i < kCount; ++i) x[i] = f(x[i]);
  return x;
}
template <class V, class F>
FASTNN_INLINE V each_lane(V x, V y, const F& f) {
  constexpr int kCount = static_cast<int>(sizeof(V) / sizeof(x[0]));
  for (int i = 0; i < kCount; ++i) x[i] = f(x[i], y[i]);
  return x;
}

// That function for both types.
struct Library {
  static FASTNN_INLINE float log2(float x) { return __builtin_log2f(x); }
  static FASTNN_INLINE double log2(double x) { return __builtin_log2(x); }
  static FASTNN_INLINE float log10(float x) { return __builtin_log10f(x); }
  static FASTNN_INLINE double log10(double x) { return __builtin_log10(x); }
  static FASTNN_INLINE float sin(float x) { return __builtin_sinf(x); }
  static FASTNN_INLINE double sin(double x) { return __builtin_sin(x); }
  static FASTNN_INLINE float cos(float x) { return __builtin_cosf(x); }
  static FASTNN_INLINE double cos(double x) { return __builtin_cos(x); }
  static FASTNN_INLINE float tan(float x) { return __builtin_tanf(x); }
  static FASTNN_INLINE double tan(double x) { return __builtin_tan(x); }
  static FASTNN_INLINE float atan(float x) { return __builtin_atanf(x); }
  static FASTNN_INLINE double atan(double x) { return __builtin_atan(x); }
  static FASTNN_INLINE float erf(float x) { return __builtin_erff(x); }
  static FASTNN_INLINE double erf(double x) { return __builtin_erf(x); }
  static FASTNN_INLINE float floor(float x) { return __builtin_floorf(x); }
  static FASTNN_INLINE double floor(double x) { return __builtin_floor(x); }
  static FASTNN_INLINE float ceil(float x) { return __builtin_ceilf(x); }
  static FASTNN_INLINE double ceil(double x) { return __builtin_ceil(x); }
  static FASTNN_INLINE float round(float x) { return __builtin_rintf(x); }
  static FASTNN_INLINE double round(double x) { return __builtin_rint(x); }
  static FASTNN_INLINE float trunc(float x) { return __builtin_truncf(x); }
  static FASTNN_INLINE double trunc(double x) { return __builtin_trunc(x); }
  static FASTNN_INLINE float pow(float x, float y) { return __builtin_powf(x, y); }
  static FASTNN_INLINE double pow(double x, double y) { return __builtin_pow(x, y); }
  static FASTNN_INLINE float fmod(float x, float y) { return __builtin_fmodf(x, y); }
  static FASTNN_INLINE double fmod(double x, double y) { return __builtin_fmod(x, y); }
  static FASTNN_INLINE float atan2(float x, float y) { return __builtin_atan2f(x, y); }
  static FASTNN_INLINE double atan2(double x, double y) { return __builtin_atan2(x, y); }
  // With the sign of the divisor, as in Python.
  template <class T>
  static FASTNN_INLINE T remainder(T x, T y) {
    const T rest = fmod(x, y);
    return rest != 0 && (rest < 0) != (y < 0) ? rest + y : rest;
  }
};

}  // namespace

}  // namespace fastnn::FASTNN_ISA
