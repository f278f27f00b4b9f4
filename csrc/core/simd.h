// One vector type for every instruction set, on GCC/Clang vector extensions: +, -, *, /, comparisons and ?:
// work lane by lane as the language defines them. This file is the only one that includes a processor's own
// header.
//
// Files that include it are compiled once per instruction set, with FASTNN_ISA naming a namespace (baseline,
// avx2, avx512, avx512_bf16). Everything they define lives in that namespace: were an inline function shared
// between the variants, the linker could keep the AVX-512 copy for all of them and crash on older processors.
// For the same reason they use no template or inline function of the standard library.
#pragma once

#include <cstdint>

#include "core/dtype.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define FASTNN_INLINE inline __attribute__((always_inline))

namespace fastnn::FASTNN_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

// The type in which values of storage type T are computed and summed.
template <class T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};
template <class T>
using Acc = typename AccOf<T>::type;

// p if T is the type that is computed in, else null.
template <class T>
FASTNN_INLINE Acc<T>* as_acc(T* p) {
  if constexpr (sizeof(T) == sizeof(Acc<T>))
    return p;
  else
    return nullptr;
}

template <class To, class From>
FASTNN_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

template <class T>
FASTNN_INLINE Vec<T> splat(T x) {
  return x -
         Vec<T>{};  // x - 0 is x for every x, so that the compiler drops it; it has to keep x + 0 for x = -0
}

// ---- scalar conversions ----

FASTNN_INLINE float to_acc(float x) { return x; }
FASTNN_INLINE double to_acc(double x) { return x; }
FASTNN_INLINE float to_acc(bfloat16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
FASTNN_INLINE float to_acc(float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
  // Subnormal halves become normal floats via an integer: no arithmetic on subnormals, which FlushSubnormals
  // would treat as 0.
  const uint32_t finite = magnitude < 0x400 ? bit_cast<uint32_t>(static_cast<float>(magnitude) * 0x1p-24f)
                                            : (magnitude << 13) + (uint32_t{112} << 23);
  const uint32_t special = (magnitude << 13) | 0x7f800000;
  return bit_cast<float>(sign | (magnitude >= 0x7c00 ? special : finite));
}

template <class T>
FASTNN_INLINE T from_acc(Acc<T> x) {
  return x;
}
template <>
FASTNN_INLINE bfloat16 from_acc<bfloat16>(float x) {
  const uint32_t u = bit_cast<uint32_t>(x);
  if (x != x) return {0x7fc0};
  return {static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16)};  // to nearest, ties to even
}
template <>
FASTNN_INLINE float16 from_acc<float16>(float x) {
  uint32_t u = bit_cast<uint32_t>(x);
  const uint32_t sign = (u >> 16) & 0x8000;
  u &= 0x7fffffff;
  uint32_t half;
  if (u >= 0x7f800000) {
    half = u > 0x7f800000 ? 0x7e00 : 0x7c00;  // NaN, infinity
  } else if (u >= 0x477ff000) {
    half = 0x7c00;  // 65520 and above round to infinity
  } else if (u < 0x38800000) {
    // Subnormal: adding 0.5, whose last place is 2^-24, rounds to a multiple of the smallest half.
    half = bit_cast<uint32_t>(bit_cast<float>(u) + 0.5f) - 0x3f000000;
  } else {
    half = (u - 0x38000000 + 0xfff + ((u >> 13) & 1)) >> 13;
  }
  return {static_cast<uint16_t>(sign | half)};
}

// Some AVX-512 intrinsics below are used in their zero-masked forms because GCC 12 warns about its own header
// for the plain ones.

// ---- loads: kLanes<Acc<T>> elements, any alignment ----

FASTNN_INLINE Vec<float> load(const float* p) {
  Vec<float> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
FASTNN_INLINE Vec<double> load(const double* p) {
  Vec<double> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
FASTNN_INLINE Vec<float> load(const bfloat16* p) {
  typedef uint16_t Half __attribute__((vector_size(kVectorBytes / 2)));
  Half h;
  __builtin_memcpy(&h, p, sizeof(h));
  return bit_cast<Vec<float>>(__builtin_convertvector(h, Vec<uint32_t>) << 16);
}
FASTNN_INLINE Vec<float> load(const float16* p) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Vec<float> v;
  for (int i = 0; i < kLanes<float>; ++i) v[i] = to_acc(p[i]);
  return v;
#endif
}

FASTNN_INLINE void store(float* p, Vec<float> v) { __builtin_memcpy(p, &v, sizeof(v)); }
FASTNN_INLINE void store(double* p, Vec<double> v) { __builtin_memcpy(p, &v, sizeof(v)); }
FASTNN_INLINE void store(bfloat16* p, Vec<float> v) {
  typedef uint16_t Half __attribute__((vector_size(kVectorBytes / 2)));
  const Vec<uint32_t> u = bit_cast<Vec<uint32_t>>(v);
  const Vec<uint32_t> rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  const Half h = __builtin_convertvector(v != v ? Vec<uint32_t>{} + 0x7fc0 : rounded, Half);
  __builtin_memcpy(p, &h, sizeof(h));
}
FASTNN_INLINE void store(float16* p, Vec<float> v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kLanes<float>; ++i) p[i] = from_acc<float16>(v[i]);
#endif
}

// Half a vector from `low`, the other half from `high`: on x86 a load and an insertion from memory, which
// leaves the port of the shuffles free.
template <class T>
FASTNN_INLINE Vec<T> load_halves(const T* low, const T* high) {
#if defined(__AVX512F__)
  const __m512d v = _mm512_castpd256_pd512(_mm256_loadu_pd(reinterpret_cast<const double*>(low)));
  return (Vec<T>)_mm512_maskz_insertf64x4(0xff, v, _mm256_loadu_pd(reinterpret_cast<const double*>(high)), 1);
#elif defined(__AVX2__)
  const __m256d v = _mm256_castpd128_pd256(_mm_loadu_pd(reinterpret_cast<const double*>(low)));
  return (Vec<T>)_mm256_insertf128_pd(v, _mm_loadu_pd(reinterpret_cast<const double*>(high)), 1);
#elif defined(__SSE2__)
  const __m128d v = _mm_load_sd(reinterpret_cast<const double*>(low));
  return (Vec<T>)_mm_loadh_pd(v, reinterpret_cast<const double*>(high));
#else
  Vec<T> v;
  __builtin_memcpy(&v, low, sizeof(v) / 2);
  __builtin_memcpy(reinterpret_cast<char*>(&v) + sizeof(v) / 2, high, sizeof(v) / 2);
  return v;
#endif
}

// ---- partial loads and stores: the first n lanes; memory beyond them is not touched, missing lanes read as
// 0 ----

template <class T>
FASTNN_INLINE Vec<Acc<T>> load_partial(const T* p, int n) {
  T lanes[kLanes<Acc<T>>] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}
// The bits of the first n values, each in the lower half of a lane.
FASTNN_INLINE Vec<uint32_t> load_bits(const bfloat16* p, int n) {
  typedef uint16_t Half __attribute__((vector_size(kVectorBytes / 2)));
#if defined(__AVX512VL__)
  const Half h = (Half)_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p);
#else
  Half h = {};
  for (int i = 0; i < n; ++i) h[i] = p[i].bits;
#endif
  return __builtin_convertvector(h, Vec<uint32_t>);
}

template <class T>
FASTNN_INLINE void store_partial(T* p, Vec<Acc<T>> v, int n) {
  T lanes[kLanes<Acc<T>>];
  store(lanes, v);
  for (int i = 0; i < n; ++i) p[i] = lanes[i];
}
#if defined(__AVX512F__)
template <>
FASTNN_INLINE Vec<float> load_partial(const float* p, int n) {
  return (Vec<float>)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
}
template <>
FASTNN_INLINE Vec<double> load_partial(const double* p, int n) {
  return (Vec<double>)_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1), p);
}
template <>
FASTNN_INLINE Vec<float> load_partial(const bfloat16* p, int n) {
  return bit_cast<Vec<float>>(load_bits(p, n) << 16);
}
template <>
FASTNN_INLINE void store_partial(float* p, Vec<float> v, int n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
}
template <>
FASTNN_INLINE void store_partial(double* p, Vec<double> v, int n) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), (__m512d)v);
}
#elif defined(__AVX2__)
// Bits of the first n of eight halves of a double, or floats, set.
FASTNN_INLINE __m256i first_set(int n) {
  alignas(64) static constexpr int32_t kSet[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kSet + 8 - n));
}
template <>
FASTNN_INLINE Vec<float> load_partial(const float* p, int n) {
  return (Vec<float>)_mm256_maskload_ps(p, first_set(n));
}
template <>
FASTNN_INLINE Vec<double> load_partial(const double* p, int n) {
  return (Vec<double>)_mm256_maskload_pd(p, first_set(2 * n));
}
#endif

template <class T>
FASTNN_INLINE Vec<Acc<T>> load_lanes(const T* p, int n) {
  return n == kLanes<Acc<T>> ? load(p) : load_partial(p, n);
}
template <class T>
FASTNN_INLINE void store_lanes(T* p, Vec<Acc<T>> v, int n) {
  if (n == kLanes<Acc<T>>)
    store(p, v);
  else
    store_partial(p, v, n);
}

// ---- lane-wise functions that the language has no operator for ----

FASTNN_INLINE Vec<float> sqrt(Vec<float> x) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_maskz_sqrt_ps(0xffff, (__m512)x);
#elif defined(__AVX2__)
  return (Vec<float>)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE2__)
  return (Vec<float>)_mm_sqrt_ps((__m128)x);
#else
  for (int i = 0; i < kLanes<float>; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}
FASTNN_INLINE Vec<double> sqrt(Vec<double> x) {
#if defined(__AVX512F__)
  return (Vec<double>)_mm512_maskz_sqrt_pd(0xff, (__m512d)x);
#elif defined(__AVX2__)
  return (Vec<double>)_mm256_sqrt_pd((__m256d)x);
#elif defined(__SSE2__)
  return (Vec<double>)_mm_sqrt_pd((__m128d)x);
#else
  for (int i = 0; i < kLanes<double>; ++i) x[i] = __builtin_sqrt(x[i]);
  return x;
#endif
}

// 1 / x, in float with a relative error of up to 2^-14 if there is an instruction for it that is faster than
// a division: for results that are refined later.
FASTNN_INLINE Vec<double> rough_inverse(Vec<double> x) { return 1.0 / x; }
FASTNN_INLINE Vec<float> rough_inverse(Vec<float> x) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_maskz_rcp14_ps(0xffff, (__m512)x);
#else
  return 1.0f / x;
#endif
}

// A NaN in a stays, a NaN in b is dropped.
template <class V>
FASTNN_INLINE V max(V a, V b) {
  return a < b ? b : a;
}
template <class V>
FASTNN_INLINE V min(V a, V b) {
  return a > b ? b : a;
}
// The instruction returns its second operand if either is NaN; the compiler does not use it on its own.
#if defined(__AVX512F__)
FASTNN_INLINE Vec<float> max(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm512_maskz_max_ps(0xffff, (__m512)b, (__m512)a);
}
FASTNN_INLINE Vec<float> min(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm512_maskz_min_ps(0xffff, (__m512)b, (__m512)a);
}
#elif defined(__AVX2__)
FASTNN_INLINE Vec<float> max(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm256_max_ps((__m256)b, (__m256)a);
}
FASTNN_INLINE Vec<float> min(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm256_min_ps((__m256)b, (__m256)a);
}
#endif

// Whether a * b + c is rounded once.
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
constexpr bool kFuses = true;
#else
constexpr bool kFuses = false;
#endif

// x 2^n for whole numbers n, rounded once, in one instruction if there is one.
#if defined(__AVX512F__)
constexpr bool kScalesByPowers = true;
FASTNN_INLINE Vec<float> scale_by_power(Vec<float> x, Vec<float> n) {
  return (Vec<float>)_mm512_maskz_scalef_ps(0xffff, (__m512)x, (__m512)n);
}
FASTNN_INLINE Vec<double> scale_by_power(Vec<double> x, Vec<double> n) {
  return (Vec<double>)_mm512_maskz_scalef_pd(0xff, (__m512d)x, (__m512d)n);
}
#else
constexpr bool kScalesByPowers = false;
#endif

// Keeps a loaded value in a register. Otherwise GCC folds the load into each instruction that uses the value
// and so reads it once for every row of a register tile.
template <class V>
FASTNN_INLINE void keep_in_register(V& v) {
#if defined(__AVX512F__)
  __asm__ volatile("" : "+v"(v));
#elif defined(__SSE2__)
  __asm__ volatile("" : "+x"(v));
#elif defined(__ARM_NEON)
  __asm__ volatile("" : "+w"(v));
#else
  (void)v;
#endif
}

// Hides from the compiler how a pointer was computed. Otherwise GCC computes the addresses of all rows of a
// tile ahead of the loop and spills them: a third of the time of a tile of depth 8.
template <class T>
FASTNN_INLINE void forget_origin(T*& pointer) {
  __asm__ volatile("" : "+r"(pointer));
}

// ---- pairs of bfloat16: two neighbours along K in one 32-bit lane, the first in its lower half ----

using Pairs = Vec<uint32_t>;

// Pairs of the n <= kLanes<float> values at `first` and those at `second`; without `second`, and beyond n, 0.
FASTNN_INLINE Pairs join_pairs(const bfloat16* first, const bfloat16* second, int n) {
  const Pairs lower = load_bits(first, n);
  return second ? lower | load_bits(second, n) << 16 : lower;
}

// The n <= 2 kLanes<float> values from p on; memory beyond them is not touched, missing values read as 0.
FASTNN_INLINE Pairs load_pairs(const bfloat16* p, int n) {
#if defined(__AVX512BW__)
  return (Pairs)_mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << n) - 1), p);
#else
  bfloat16 values[2 * kLanes<float>] = {};
  for (int i = 0; i < n; ++i) values[i] = p[i];
  return bit_cast<Pairs>(values);
#endif
}

// The pair at p in every lane.
FASTNN_INLINE Pairs splat_pair(const bfloat16* p) {
  uint32_t pair;
  __builtin_memcpy(&pair, p, sizeof(pair));
  return splat(pair);
}

// The first n <= kLanes<float> pairs.
FASTNN_INLINE void store_pairs(uint32_t* p, Pairs v, int n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_epi32(p, static_cast<__mmask16>((1u << n) - 1), (__m512i)v);
#else
  for (int i = 0; i < n; ++i) p[i] = v[i];
#endif
}

// sums + second values' product + first values' product, each addition rounded to nearest even. NaN and
// infinity pass. The instruction also takes subnormal values as 0 and gives 0 for a subnormal sum (Intel SDM,
// VDPBF16PS); this is the only line of the pair kernels that needs a processor with AVX512_BF16. Elsewhere
// two FMAs, which keep subnormals, replace it, so that everything else is tested everywhere.
FASTNN_INLINE Vec<float> add_products(Vec<float> sums, Pairs a, Pairs b) {
#if defined(__AVX512BF16__)
  return (Vec<float>)_mm512_dpbf16_ps((__m512)sums, (__m512bh)a, (__m512bh)b);
#else
  const Pairs second = Pairs{} + 0xffff0000u;
  sums += bit_cast<Vec<float>>(a & second) * bit_cast<Vec<float>>(b & second);
  return sums + bit_cast<Vec<float>>(a << 16) * bit_cast<Vec<float>>(b << 16);
#endif
}

// Sum of the lanes, in a tree of fixed shape.
template <class T>
FASTNN_INLINE T horizontal_sum(const T* lanes) {
  T tree[kLanes<T>];
  for (int i = 0; i < kLanes<T>; ++i) tree[i] = lanes[i];
  for (int width = kLanes<T> / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) tree[i] += tree[i + width];
  return tree[0];
}
FASTNN_INLINE float sum(Vec<float> v) { return horizontal_sum(reinterpret_cast<const float*>(&v)); }
FASTNN_INLINE double sum(Vec<double> v) { return horizontal_sum(reinterpret_cast<const double*>(&v)); }

}  // namespace fastnn::FASTNN_ISA
