#include "program/reduce/reduce.h"

namespace fastnn::FASTNN_ISA {

namespace {

// y = sum of x / numbers[0], over the dimensions of x after the first code[0], which are y's. Both of one
// type: float, double or int64_t (whose sums are not divided).
void sum(const Instruction& i) {
  switch (i.operands[0].dtype) {
    case DType::f32:
      return reduce<FloatSum<float>>(i);
    case DType::f64:
      return reduce<FloatSum<double>>(i);
    default:
      return reduce<IntegerSum>(i);
  }
}

template <bool kLargest>
void extreme(const Instruction& i) {
  switch (i.operands[0].dtype) {
    case DType::f32:
      return reduce<Extreme<float, kLargest>>(i);
    case DType::f64:
      return reduce<Extreme<double, kLargest>>(i);
    case DType::i64:
      return reduce<Extreme<int64_t, kLargest>>(i);
    default:
      return reduce<Extreme<uint8_t, kLargest>>(i);
  }
}

// Longer rows are processed one by one.
constexpr int64_t kManyPlaces = 256;

// The first of the largest values, or of the smallest, or the first NaN.
template <class T>
int64_t find_extreme(const ReduceShape& shape, const T* x, bool largest) {
  const int64_t stride = shape.reduced.strides[shape.reduced.ndim - 1];
  int64_t at = 0;
  T best = *x;
  each_run(shape.reduced, 0, shape.count, [&](int64_t done, int64_t offset, int64_t length) {
    for (int64_t k = 0; k < length; ++k) {
      const T value = x[offset + k * stride];
      const bool better = largest ? value > best : value < best;
      if (best == best && (better || value != value)) {
        best = value;
        at = done + k;
      }
    }
  });
  return at;
}

// As many rows at a time as a vector has lanes: their values are loaded one by one, but compared without
// branches, which random values would mispredict.
template <class T>
void find_in_rows(const ReduceShape& shape, bool largest) {
  constexpr int64_t kL = kLanesOf<T>;
  using Values = Lanes<T, kL>;
  using Places = decltype(Values{} < Values{});
  const int64_t pitch = shape.x.strides[0], stride = shape.reduced.strides[0];
  parallel_for((shape.results + kL - 1) / kL, kReduceGrain / (kL * shape.count) + 1,
               [&](int64_t begin, int64_t end) {
                 for (int64_t group = begin; group < end; ++group) {
                   const int64_t first = group * kL, rows = min(kL, shape.results - first);
                   const T* const x = shape.x.as<const T>() + first * pitch;
                   Values best{};
                   for (int64_t r = 0; r < rows; ++r) best[r] = x[r * pitch];
                   Places at{}, place{};
                   for (int64_t k = 1; k < shape.count; ++k) {
                     place += 1;
                     Values value{};
                     if (rows == kL)
                       for (int64_t r = 0; r < kL; ++r) value[r] = x[r * pitch + k * stride];
                     else
                       for (int64_t r = 0; r < rows; ++r) value[r] = x[r * pitch + k * stride];
                     const Places better = (largest ? value > best : value < best) | (value != value);
                     const Places taken = better & (best == best);
                     best = taken ? value : best;
                     at = taken ? place : at;
                   }
                   int64_t* const y = shape.y.as<int64_t>() + first * shape.y.strides[0];
                   for (int64_t r = 0; r < rows; ++r) y[r * shape.y.strides[0]] = at[r];
                 }
               });
}

template <class T>
void find_extremes(const Instruction& i) {
  const ReduceShape shape(i);
  const bool largest = i.code[1];
  if constexpr (sizeof(T) > 1)  // bytes could not count the positions
    if (shape.kept == 1 && shape.reduced.ndim == 1 && shape.count <= kManyPlaces)
      return find_in_rows<T>(shape, largest);
  parallel_for(shape.results, kReduceGrain / (shape.count + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      shape.y.as<int64_t>()[shape.offset(shape.y, r)] =
          find_extreme(shape, shape.x.as<const T>() + shape.offset(shape.x, r), largest);
  });
}

// y, of int64_t, is the position of the largest x (code[1] = 1), or the smallest (0): counted over the
// dimensions after the first code[0], of which there are some, none empty.
void arg_extreme(const Instruction& i) {
  switch (i.operands[1].dtype) {
    case DType::f32:
      return find_extremes<float>(i);
    case DType::f64:
      return find_extremes<double>(i);
    case DType::i64:
      return find_extremes<int64_t>(i);
    default:
      return find_extremes<uint8_t>(i);
  }
}

// amax, amin: y is the largest or smallest x over the dimensions after the first code[0], or NaN if there
// is one. Of bools over nothing, amax is false and amin true.
constexpr NamedInstruction kInstructions[] = {
    {"sum", sum}, {"amax", extreme<true>}, {"amin", extreme<false>}, {"arg_extreme", arg_extreme}};

}  // namespace

InstructionFamily reduce_instructions() {
  return {kInstructions, sizeof(kInstructions) / sizeof(*kInstructions)};
}

}  // namespace fastnn::FASTNN_ISA
