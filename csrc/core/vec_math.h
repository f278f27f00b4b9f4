// exp, log and log1p of a vector of float or double, the same source for every instruction set.
//
// Error bounds, tested in tests/ops/test_vec_math.py: exp 2 ulp (subnormal results 2 of the smallest
// subnormal), log 2 ulp, log1p 2 ulp for x in [0, 1], which is its domain. NaN gives NaN, exp(inf) = inf,
// exp(-inf) = 0, log(0) = -inf, log(inf) = inf, log of a negative number NaN.
#pragma once

#include "core/simd.h"

namespace fastnn::FASTNN_ISA {

template <class T>
struct FloatFormat;

template <>
struct FloatFormat<float> {
  using Int = int32_t;
  using Bits = uint32_t;
  static constexpr int kFractionBits = 23;
  static constexpr Int kBias = 127;
  // 1.5 * 2^23: adding it rounds a small number to an integer that is then in the low bits.
  static constexpr float kRounder = 0x1.8p23f;
  // ln 2 in two parts: the first has 10 bits, so that its product with any exponent is exact.
  static constexpr float kLn2High = 0x1.63p-1f, kLn2Low = -0x1.bd0106p-13f;
  // e^low rounds to 0 and e^high overflows.
  static constexpr float kExpLow = -104.0f, kExpHigh = 89.0f;
  // Taylor terms: 2 / 11 * 0.172^10 = 4e-9 is omitted, compared with 6e-8 for half an ulp.
  static constexpr int kLogTerms = 4;
  static constexpr float kSmallestNormal = 0x1p-126f, kLiftSubnormal = 0x1p23f;
};

template <>
struct FloatFormat<double> {
  using Int = int64_t;
  using Bits = uint64_t;
  static constexpr int kFractionBits = 52;
  static constexpr Int kBias = 1023;
  static constexpr double kRounder = 0x1.8p52;
  static constexpr double kLn2High = 0x1.62e42fee00000p-1, kLn2Low = 0x1.a39ef35793c76p-33;
  static constexpr double kExpLow = -746.0, kExpHigh = 710.0;
  // 2 / 23 * 0.172^22 = 1e-18 is omitted, compared with 1e-16.
  static constexpr int kLogTerms = 10;
  static constexpr double kSmallestNormal = 0x1p-1022, kLiftSubnormal = 0x1p52;
};

// (e^r - 1 - r) / r^2 as a polynomial in r for |r| <= ln 2 / 2. In float, of those that begin with 1/2, the
// one with the smallest maximum error in e^r, 4e-9; in double the one through the Chebyshev points, 3e-19.
template <class T>
struct ExpRest;

template <>
struct ExpRest<float> {
  static constexpr int kDegree = 4;
  static constexpr float kQ[kDegree + 1] = {0x1p-1f, 0x1.5554a4p-3f, 0x1.555688p-5f, 0x1.122f88p-7f,
                                            0x1.6b6e42p-10f};
};

template <>
struct ExpRest<double> {
  static constexpr int kDegree = 10;
  static constexpr double kQ[kDegree + 1] = {0x1p-1,
                                             0x1.5555555555557p-3,
                                             0x1.5555555555556p-5,
                                             0x1.11111111100dcp-7,
                                             0x1.6c16c16c162d4p-10,
                                             0x1.a01a01abe7fe1p-13,
                                             0x1.a01a01a6d889cp-16,
                                             0x1.71de0231960ebp-19,
                                             0x1.27e4db646b17ep-22,
                                             0x1.af4de97ca4194p-26,
                                             0x1.1f730349868cep-29};
};

namespace detail {

// Table::kQ[k] u^k for k from `kFirst` to Table::kDegree, divided by u^kFirst: Horner's scheme, unrolled at
// compile time.
template <class Table, int kFirst = 0, class V>
FASTNN_INLINE V table_series(V u) {
  constexpr auto kCoefficient = Table::kQ[kFirst];
  if constexpr (kFirst == Table::kDegree)
    return splat(kCoefficient);
  else
    return table_series<Table, kFirst + 1>(u) * u + kCoefficient;
}

// 2/(2k+1) for k from `kFirst` to `kTerms`.
template <class T, int kFirst, int kTerms>
FASTNN_INLINE Vec<T> log_series(Vec<T> z) {
  constexpr T kCoefficient = T(2) / T(2 * kFirst + 1);
  if constexpr (kFirst == kTerms)
    return splat(kCoefficient);
  else
    return log_series<T, kFirst + 1, kTerms>(z) * z + kCoefficient;
}

// r with x = n ln 2 + r and |r| <= ln 2 / 2; n as a number and as an integer.
template <class T>
FASTNN_INLINE Vec<T> reduce_by_ln2(Vec<T> x, Vec<T>& whole, Vec<typename FloatFormat<T>::Int>& n) {
  using Format = FloatFormat<T>;
  using IntVec = Vec<typename Format::Int>;
  constexpr T kLog2E = T(1.44269504088896340736);
  const Vec<T> shifted = x * kLog2E + Format::kRounder;
  whole = shifted - Format::kRounder;
  n = bit_cast<IntVec>(shifted) - bit_cast<IntVec>(splat(Format::kRounder));
  return (x - whole * Format::kLn2High) - whole * Format::kLn2Low;
}

// e^x = 2^n e^r.
template <class T>
FASTNN_INLINE Vec<T> exp(Vec<T> x) {
  using Format = FloatFormat<T>;
  using IntVec = Vec<typename Format::Int>;
  x = min(max(x, splat(Format::kExpLow)), splat(Format::kExpHigh));  // a NaN passes both
  Vec<T> whole;
  IntVec exponent;
  const Vec<T> r = reduce_by_ln2<T>(x, whole, exponent);
  const Vec<T> series = (r * r) * table_series<ExpRest<T>>(r) + r + T(1);
  if constexpr (kScalesByPowers) {
    return scale_by_power(series, whole);
  } else {
    // 2^n in two factors: n itself may be outside the exponent range of normal numbers.
    const IntVec half = exponent >> 1;
    const IntVec low = (half + Format::kBias) << Format::kFractionBits;
    const IntVec high = (exponent - half + Format::kBias) << Format::kFractionBits;
    return series * bit_cast<Vec<T>>(low) * bit_cast<Vec<T>>(high);
  }
}

// x = 2^n (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)]; with s = f / (2 + f), log(1 + f) = 2 atanh(s)
// = f - f^2/2 + s (f^2/2 + s^2 (2/3 + 2/5 s^2 + ...)), whose leading term is exact.
template <class T>
FASTNN_INLINE Vec<T> log(Vec<T> x) {
  using Format = FloatFormat<T>;
  using IntVec = Vec<typename Format::Int>;
  using BitVec = Vec<typename Format::Bits>;  // wraps around, as with the bits of -0, whose n is not used
  constexpr T kSqrtHalf = T(0.70710678118654752440), kInfinity = T(__builtin_inf());
  const auto subnormal = x < Format::kSmallestNormal;
  const Vec<T> lifted = subnormal ? x * Format::kLiftSubnormal : x;
  const BitVec bits = bit_cast<BitVec>(lifted);
  const IntVec n = bit_cast<IntVec>(bits - bit_cast<BitVec>(splat(kSqrtHalf))) >> Format::kFractionBits;
  const Vec<T> f = bit_cast<Vec<T>>(bits - (bit_cast<BitVec>(n) << Format::kFractionBits)) - T(1);
  const Vec<T> scale =
      __builtin_convertvector(n, Vec<T>) - (subnormal ? splat(T(Format::kFractionBits)) : Vec<T>{});
  const Vec<T> s = f / (f + T(2)), z = s * s, half_square = f * f * T(0.5);
  const Vec<T> rest =
      s * (half_square + z * log_series<T, 1, Format::kLogTerms>(z)) + scale * Format::kLn2Low;
  const Vec<T> finite = scale * Format::kLn2High - ((half_square - rest) - f);
  const Vec<T> special = x == T(0) ? splat(-kInfinity) : (x == kInfinity ? x : splat(T(__builtin_nan(""))));
  return ((x > T(0)) & (x < kInfinity)) ? finite : special;
}

// log(1 + x) for x in [0, 1]: the rounding error of 1 + x changes the logarithm by that error over 1 + x.
template <class T>
FASTNN_INLINE Vec<T> log1p(Vec<T> x) {
  const Vec<T> rounded = x + T(1);
  return log<T>(rounded) + (x - (rounded - T(1))) / rounded;
}

}  // namespace detail

FASTNN_INLINE Vec<float> exp(Vec<float> x) { return detail::exp<float>(x); }
FASTNN_INLINE Vec<double> exp(Vec<double> x) { return detail::exp<double>(x); }
FASTNN_INLINE Vec<float> log(Vec<float> x) { return detail::log<float>(x); }
FASTNN_INLINE Vec<double> log(Vec<double> x) { return detail::log<double>(x); }
FASTNN_INLINE Vec<float> log1p(Vec<float> x) { return detail::log1p<float>(x); }
FASTNN_INLINE Vec<double> log1p(Vec<double> x) { return detail::log1p<double>(x); }

}  // namespace fastnn::FASTNN_ISA
