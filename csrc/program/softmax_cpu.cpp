#include "core/dtype_dispatch.h"
#include "core/flush_subnormals.h"
#include "ops/cross_entropy/row.h"
#include "ops/cross_entropy/tile.h"
#include "program/class_rows.h"
#include "program/instruction.h"

namespace fastnn::FASTNN_ISA {

namespace {

// Up to this many classes, rows are laid out along the lanes: the values cost a transposition each way then,
// but maximum, sum and logarithm serve as many rows as there are lanes. For gradients only a sum gains from
// it.
// Measured on Zen 4 (AVX-512), 256 x 100 and 128 x 256, one row at a time / along the lanes, us: log_softmax
// 19 / 12 and 16 / 22, its gradient 12 / 14 and 11 / 25.
constexpr int64_t kLaneClasses = 192, kLaneClassesOfGradient = 64;
// Fewer rows would leave most lanes of their vectors empty.
constexpr int64_t kFewRows = 3;

enum class Form : int64_t { softmax, log_softmax };

// A tile of n rows, whatever their strides.
template <class T>
void gather_tile(const T* x, int64_t row_stride, int64_t class_stride, int64_t classes, int n, T* tile) {
  if (class_stride == 1 || row_stride == 1) return load_tile(x, row_stride, class_stride, classes, n, tile);
  for (int64_t k = 0; k < classes; ++k)
    for (int lane = 0; lane < kLanes<T>; ++lane)
      tile[k * kLanes<T> + lane] = lane < n ? x[lane * row_stride + k * class_stride] : T(0);
}

template <class T>
void scatter_tile(T* x, int64_t row_stride, int64_t class_stride, int64_t classes, int n, const T* tile) {
  if (class_stride == 1 || row_stride == 1) return store_tile(x, row_stride, class_stride, classes, n, tile);
  for (int64_t k = 0; k < classes; ++k)
    for (int lane = 0; lane < n; ++lane) x[lane * row_stride + k * class_stride] = tile[k * kLanes<T> + lane];
}

// Sum of term(k, lanes) over the classes of a contiguous row, in blocks.
template <class T, class Term>
double row_sum(const T* x, int64_t classes, T fill, const Term& term) {
  double total = 0;
  for (int64_t begin = 0; begin < classes; begin += kBlock<T>)
    total += block_sum(x + begin, min(kBlock<T>, classes - begin), fill,
                       [&](Vec<T> v, int64_t k, int lanes) { return term(v, begin + k, lanes); });
  return total;
}

template <class T, class Body>
void each_vector(int64_t classes, const Body& body) {
  constexpr int64_t kL = kLanes<T>;
  int64_t k = 0;
  for (; k + kL <= classes; k += kL) body(k, static_cast<int>(kL));
  if (k < classes) body(k, static_cast<int>(classes - k));
}

template <class T>
void softmax_row(Form form, const T* x, int64_t classes, T* y) {
  T largest = -kInfinity<T>;
  for (int64_t begin = 0; begin < classes; begin += kBlock<T>) {
    const T in_block = block_max(x + begin, min(kBlock<T>, classes - begin));
    largest = largest < in_block ? in_block : largest;
  }
  const bool logarithm = form == Form::log_softmax;
  const double total = row_sum(x, classes, -kInfinity<T>, [&](Vec<T> v, int64_t k, int lanes) {
    const Vec<T> e = exp(v - largest);
    if (!logarithm) store_lanes(y + k, e, lanes);
    return e;
  });
  const T log_total = static_cast<T>(__builtin_log(total)), inverse = static_cast<T>(1 / total);
  each_vector<T>(classes, [&](int64_t k, int lanes) {
    const Vec<T> v = load_lanes(logarithm ? x + k : y + k, lanes);
    store_lanes(y + k, logarithm ? (v - largest) - log_total : v * inverse, lanes);
  });
}

template <class T>
void softmax_tile(Form form, int64_t classes, T* tile) {
  constexpr int64_t kL = kLanes<T>;
  const Vec<T> largest = largest_class(classes, tile);
  const bool logarithm = form == Form::log_softmax;
  const Vec<T> total = sum_classes<T>(classes, [&](int64_t k) {
    const Vec<T> e = exp(load(tile + k * kL) - largest);
    if (!logarithm) store(tile + k * kL, e);
    return e;
  });
  if (logarithm) {
    const Vec<T> log_total = log(total);
    for (int64_t k = 0; k < classes; ++k) store(tile + k * kL, (load(tile + k * kL) - largest) - log_total);
  } else {
    const Vec<T> inverse = T(1) / total;
    for (int64_t k = 0; k < classes; ++k) store(tile + k * kL, load(tile + k * kL) * inverse);
  }
}

template <class T>
void gradient_row(Form form, const T* g, const T* y, int64_t classes, T* dx) {
  const bool logarithm = form == Form::log_softmax;
  const T sum = static_cast<T>(row_sum(g, classes, T(0), [&](Vec<T> v, int64_t k, int lanes) {
    return logarithm ? v : v * load_lanes(y + k, lanes);
  }));
  each_vector<T>(classes, [&](int64_t k, int lanes) {
    const Vec<T> slope = load_lanes(g + k, lanes), value = load_lanes(y + k, lanes);
    store_lanes(dx + k, logarithm ? slope - exp(value) * sum : (slope - sum) * value, lanes);
  });
}

// Leaves the gradients in the tile of g.
template <class T>
void gradient_tile(Form form, int64_t classes, T* g, const T* y) {
  constexpr int64_t kL = kLanes<T>;
  const bool logarithm = form == Form::log_softmax;
  const Vec<T> sum = sum_classes<T>(classes, [&](int64_t k) {
    const Vec<T> slope = load(g + k * kL);
    return logarithm ? slope : slope * load(y + k * kL);
  });
  for (int64_t k = 0; k < classes; ++k) {
    const Vec<T> slope = load(g + k * kL), value = load(y + k * kL);
    store(g + k * kL, logarithm ? slope - exp(value) * sum : (slope - sum) * value);
  }
}

bool one_row_at_a_time(const ClassRows& rows, int64_t lane_classes) {
  for (int t = 0; t < rows.count; ++t)
    if (rows.class_stride[t] != 1) return false;
  return rows.classes > lane_classes || rows.along < kFewRows;
}

// Calls use(offsets, rows) for single rows, or for blocks of up to as many as a vector has lanes.
template <class T, class Use>
void share_rows(const ClassRows& rows, bool single, const Use& use) {
  const int64_t most = single ? 1 : kLanes<T>;
  parallel_for(rows.blocks(most), ceil_div(kRowsGrain, rows.classes * most), [&](int64_t begin, int64_t end) {
    // The gradient of a class with a far smaller logit would be subnormal: see core/flush_subnormals.h.
    const FlushSubnormals flush;
    rows.each_block(most, begin, end,
                    [&](const int64_t* offsets, int64_t n, int64_t) { use(offsets, static_cast<int>(n)); });
  });
}

template <class Body>
void for_floats(DType dtype, const Body& body) {
  if (dtype == DType::f32)
    body(TypeTag<float>{});
  else
    body(TypeTag<double>{});
}

// softmax: y = x; code: dimension, form
//   form 0: y = exp(x) / sum exp(x)     1: its logarithm
void softmax(const Instruction& i) {
  const TensorView &y = i.operands[0], &x = i.operands[1];
  if (x.numel() == 0) return;
  const TensorView* const tensors[] = {&y, &x};
  const ClassRows rows(tensors, 2, i.code[0]);
  const Form form = static_cast<Form>(i.code[1]);
  const bool single = one_row_at_a_time(rows, kLaneClasses);
  for_floats(x.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    share_rows<T>(rows, single, [&](const int64_t* at, int n) {
      T* const to = y.as<T>() + at[0];
      const T* const from = x.as<const T>() + at[1];
      if (single) return softmax_row(form, from, rows.classes, to);
      T* const tile =
          static_cast<T*>(thread_scratch(Scratch::row, static_cast<size_t>(rows.classes) * kVectorBytes));
      gather_tile(from, rows.along_stride[1], rows.class_stride[1], rows.classes, n, tile);
      softmax_tile(form, rows.classes, tile);
      scatter_tile(to, rows.along_stride[0], rows.class_stride[0], rows.classes, n, tile);
    });
  });
}

// softmax_gradient: dx = g, y; code: dimension, form
//   form 0: dx = (g - sum g y) y        1: dx = g - exp(y) sum g
void softmax_gradient(const Instruction& i) {
  const TensorView &dx = i.operands[0], &g = i.operands[1], &y = i.operands[2];
  if (y.numel() == 0) return;
  const TensorView* const tensors[] = {&dx, &g, &y};
  const ClassRows rows(tensors, 3, i.code[0]);
  const Form form = static_cast<Form>(i.code[1]);
  const bool single = one_row_at_a_time(rows, kLaneClassesOfGradient);
  for_floats(y.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    share_rows<T>(rows, single, [&](const int64_t* at, int n) {
      T* const to = dx.as<T>() + at[0];
      const T* const slope = g.as<const T>() + at[1];
      const T* const value = y.as<const T>() + at[2];
      if (single) return gradient_row(form, slope, value, rows.classes, to);
      const int64_t size = rows.classes * kLanes<T>;
      T* const tile =
          static_cast<T*>(thread_scratch(Scratch::row, static_cast<size_t>(rows.classes) * 2 * kVectorBytes));
      gather_tile(slope, rows.along_stride[1], rows.class_stride[1], rows.classes, n, tile);
      gather_tile(value, rows.along_stride[2], rows.class_stride[2], rows.classes, n, tile + size);
      gradient_tile(form, rows.classes, tile, tile + size);
      scatter_tile(to, rows.along_stride[0], rows.class_stride[0], rows.classes, n, tile);
    });
  });
}

constexpr NamedInstruction kInstructions[] = {{"softmax", softmax}, {"softmax_gradient", softmax_gradient}};

}  // namespace

InstructionFamily softmax_instructions() {
  return {kInstructions, sizeof(kInstructions) / sizeof(*kInstructions)};
}

}  // namespace fastnn::FASTNN_ISA
