// sigmoid, tanh and the normal distribution of a vector of float or double, the same source for every
// instruction set.
//
// Error bounds, tested in tests/ops/test_vec_math.py: sigmoid 3 ulp, but it may be 0 below e^-88 (float;
// double e^-709); tanh 0.9 ulp; normal_cdf 4 ulp for x >= 0, (7 + x^2 / 2) ulp for x < 0 down to
// the smallest normal number, 0 below it. NaN gives NaN, the limits at the infinities are exact, tanh(-0) =
// -0.
#pragma once

#include "core/vec_math.h"

namespace fastnn::FASTNN_ISA {

// erfcx(x / sqrt 2) / 2 = e^(x^2 / 2) P(Z > x) for x >= 0, as t Q(t - 1/2) with t = 1 / (1 + kScale x). Q
// interpolates the quotient at the Chebyshev points of t for x up to 14.5 (float) and 39, found with 60
// digits. Beyond kLargest the probability is no longer a normal number, and arithmetic on subnormals takes
// many times as long.
template <class T>
struct NormalTail;

template <>
struct NormalTail<float> {
  static constexpr float kScale = 0.3f, kLargest = 12.9f;
  static constexpr int kDegree = 9;  // relative error 4.4e-9
  static constexpr float kQ[kDegree + 1] = {0x1.c69888p-3f, 0x1.510f0ep-2f,  0x1.6281eep-2f,  0x1.c6d2f4p-3f,
                                            0x1.dc1ee4p-6f, -0x1.3d9c0ap-4f, -0x1.2b2deep-5f, 0x1.261a3ep-5f,
                                            0x1.46f2c8p-6f, -0x1.5757f0p-6f};
};

template <>
struct NormalTail<double> {
  static constexpr double kScale = 0.25, kLargest = 37.5;
  static constexpr int kDegree = 22;  // relative error 3.6e-17
  static constexpr double kQ[kDegree + 1] = {
      0x1.82b4bb8c94dcep-3,  0x1.373e3a893c287p-2,   0x1.8c6dbf2cfc2fdp-2,   0x1.7dff2bff6889ap-2,
      0x1.eec4cc3e4560cp-3,  0x1.ee2761034c407p-5,   -0x1.c81719cabcedep-5,  -0x1.ab825f7e9996dp-5,
      0x1.17a4a6b9505f7p-7,  0x1.e4a415fb8cca5p-6,   -0x1.0011cb7c88079p-11, -0x1.26cf8dea72ab1p-6,
      0x1.7fdd9eeeb883fp-11, 0x1.8d35cd874dc01p-7,   -0x1.4f9d808db1d2fp-9,  -0x1.11c074ae9e33fp-7,
      0x1.1b207d62865e8p-8,  0x1.4b471811b0210p-8,   -0x1.480d99ae63529p-8,  -0x1.f4eaa9c85bbb0p-10,
      0x1.de6d02a26289cp-9,  -0x1.3fb7ce475a168p-15, -0x1.0959f1400a390p-10};
};

// (tanh(x) / x - 1) / x^2 as a polynomial in x^2 for x up to kBound, above which tanh(x) > 1/2. Found like Q;
// the float coefficients were then adjusted by a few units in the last place to minimise the largest error of
// tanh. The truncation error is less than 1/10 (double 1/50) of the rounding error.
template <class T>
struct TanhRest;

template <>
struct TanhRest<float> {
  static constexpr float kBound = 0.55f;
  static constexpr int kDegree = 4;
  static constexpr float kQ[kDegree + 1] = {-0x1.555556p-2f, 0x1.110feep-3f, -0x1.b9a044p-5f, 0x1.5d234cp-6f,
                                            -0x1.b13082p-8f};
};

template <>
struct TanhRest<double> {
  static constexpr double kBound = 0.55;
  static constexpr int kDegree = 10;
  static constexpr double kQ[kDegree + 1] = {
      -0x1.5555555555555p-2,  0x1.1111111111032p-3,  -0x1.ba1ba1b9fec84p-5,  0x1.664f487713373p-6,
      -0x1.226e32f00cf0cp-7,  0x1.d6d339333f329p-9,  -0x1.7d97cfd138c28p-10, 0x1.34c5a8a996cd4p-11,
      -0x1.ec1091436eb2ap-13, 0x1.64fd88e9900a4p-14, -0x1.59a834187ce22p-16};
};

namespace detail {

template <class T>
FASTNN_INLINE Vec<T> sigmoid(Vec<T> x) {
  return T(1) / (exp<T>(-x) + T(1));
}

// `complement` is 1 - sigmoid(x), without cancellation.
template <class T>
FASTNN_INLINE Vec<T> sigmoid(Vec<T> x, Vec<T>& complement) {
  const Vec<T> e = exp<T>(x < 0 ? x : -x);
  const Vec<T> smaller = e / (e + T(1)), larger = T(1) - smaller;
  complement = x < 0 ? larger : smaller;
  return x < 0 ? smaller : larger;
}

// With |x| = n ln 2 / 2 + h, A = 2^n and t = tanh h, 1 - tanh |x| = w = 2 (1 - t) / ((A + 1) + (A - 1) t).
// From kBound on, a rough y = 1 - w is corrected by the residual of w = 1 - y, exact because y >= 1/2, so
// that the error is hardly more than that of rounding the result. Below, n is 0.
template <class T>
FASTNN_INLINE Vec<T> tanh(Vec<T> x) {
  using Format = FloatFormat<T>;
  using IntVec = Vec<typename Format::Int>;
  using Rest = TanhRest<T>;
  constexpr T kTwoLog2E = T(2.88539008177792681472), kHalfLn2 = T(0.34657359027997265471);
  constexpr T kRoundsToOne = sizeof(T) == 4 ? T(10) : T(20);  // 2 e^(-2 x) is below a quarter ulp of 1
  const IntVec sign = bit_cast<IntVec>(x) & bit_cast<IntVec>(splat(T(-0.0)));
  const Vec<T> a = min(bit_cast<Vec<T>>(bit_cast<IntVec>(x) ^ sign), splat(kRoundsToOne));  // a NaN passes
  const auto small = a < Rest::kBound;
  const Vec<T> shifted = a * kTwoLog2E + Format::kRounder, n = shifted - Format::kRounder;
  const IntVec exponent =
      bit_cast<IntVec>(shifted) - bit_cast<IntVec>(splat(Format::kRounder)) + Format::kBias;
  const Vec<T> power = bit_cast<Vec<T>>(exponent << Format::kFractionBits);
  const Vec<T> rest =
      kFuses ? a - n * kHalfLn2 : (a - n * (Format::kLn2High / 2)) - n * (Format::kLn2Low / 2);
  const Vec<T> h = small ? a : rest, square = h * h;
  const Vec<T> t = (h * square) * table_series<Rest>(square) + h;
  const Vec<T> plus = power + T(1), minus = power - T(1);
  const Vec<T> inverse = rough_inverse(minus * t + plus);
  const Vec<T> y = T(1) - (T(1) - t) * (inverse + inverse), w = T(1) - y;
  const Vec<T> first = kFuses ? T(2) - plus * w : (T(2) - power * w) - w;
  const Vec<T> large = y - (first - t * (minus * w + T(2))) * inverse;
  return bit_cast<Vec<T>>(bit_cast<IntVec>(small ? t : large) | sign);
}

// P(Z <= x) for a standard normal Z, and its density at x.
template <class T>
FASTNN_INLINE Vec<T> normal_cdf(Vec<T> x, Vec<T>& density) {
  using Tail = NormalTail<T>;
  constexpr T kInvSqrt2Pi = T(0.39894228040143267794);
  Vec<T> a = x < 0 ? -x : x;
  const auto beyond = a > Tail::kLargest;  // not so for NaN
  a = beyond ? splat(Tail::kLargest) : a;
  const Vec<T> bell = beyond ? Vec<T>{} : exp<T>(a * a * T(-0.5));
  const Vec<T> t = T(1) / (a * Tail::kScale + T(1));
  const Vec<T> tail = bell * (t * table_series<Tail>(t - T(0.5)));
  density = bell * kInvSqrt2Pi;
  return x < 0 ? tail : T(1) - tail;
}

}  // namespace detail

FASTNN_INLINE Vec<float> sigmoid(Vec<float> x) { return detail::sigmoid<float>(x); }
FASTNN_INLINE Vec<double> sigmoid(Vec<double> x) { return detail::sigmoid<double>(x); }
FASTNN_INLINE Vec<float> sigmoid(Vec<float> x, Vec<float>& complement) {
  return detail::sigmoid<float>(x, complement);
}
FASTNN_INLINE Vec<double> sigmoid(Vec<double> x, Vec<double>& complement) {
  return detail::sigmoid<double>(x, complement);
}
FASTNN_INLINE Vec<float> tanh(Vec<float> x) { return detail::tanh<float>(x); }
FASTNN_INLINE Vec<double> tanh(Vec<double> x) { return detail::tanh<double>(x); }
FASTNN_INLINE Vec<float> normal_cdf(Vec<float> x, Vec<float>& density) {
  return detail::normal_cdf<float>(x, density);
}
FASTNN_INLINE Vec<double> normal_cdf(Vec<double> x, Vec<double>& density) {
  return detail::normal_cdf<double>(x, density);
}
template <class V>
FASTNN_INLINE V normal_cdf(V x) {
  V density;
  return normal_cdf(x, density);
}

}  // namespace fastnn::FASTNN_ISA
