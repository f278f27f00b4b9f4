// The negative log-likelihood of classes, as in torch: a row's loss is -w[t] x[t], and 0 if its target
// t is the ignored index.
#include "core/dtype_dispatch.h"
#include "core/flush_subnormals.h"
#include "core/scratch.h"
#include "core/vec_math.h"
#include "program/class_rows.h"
#include "program/instruction.h"

namespace fastnn::FASTNN_ISA {

namespace {

enum class Reduced : int64_t { none, mean, sum };

// Rows whose losses are added up before they are added to the total.
constexpr int64_t kNllChunk = 1024;

struct RowSums {
  double loss = 0, weight = 0;
  int64_t bad = 0, bad_index = 0;  // whether an index is out of range, and the first such index
};

// What the three instructions share. Operands with one value per row are expanded along the classes.
template <class T>
struct Targets {
  const TensorView& target;
  const T* weight;
  int64_t weight_stride, ignored, classes;

  int64_t at(int64_t offset) const {
    return target.dtype == DType::u8 ? int64_t{target.as<const uint8_t>()[offset]}
                                     : target.as<const int64_t>()[offset];
  }
  bool counts(int64_t t) const { return t != ignored && t >= 0 && t < classes; }
  T weight_of(int64_t t) const { return weight ? weight[t * weight_stride] : T(1); }
};

template <class T>
Targets<T> targets(const TensorView& target, const TensorView* weight, int64_t ignored, int64_t classes) {
  return {target, weight ? weight->as<const T>() : nullptr, weight ? weight->strides[0] : 0, ignored,
          classes};
}

template <class T>
void losses(const Instruction& i) {
  const TensorView &loss = i.operands[0], &x = i.operands[3];
  const TensorView* const weight = i.code[2] ? &i.operands[5] : nullptr;
  const Reduced reduction = static_cast<Reduced>(i.code[0]);
  const bool each = reduction == Reduced::none;
  const TensorView* const tensors[] = {&x, &i.operands[4], &loss};
  const ClassRows rows(tensors, each ? 3 : 2, x.ndim - 1);
  const Targets<T> with = targets<T>(i.operands[4], weight, i.code[1], rows.classes);
  const int64_t chunks = rows.blocks(kNllChunk);
  RowSums* const partial = static_cast<RowSums*>(
      shared_scratch(Scratch::accumulate, static_cast<size_t>(chunks) * sizeof(RowSums)));
  parallel_for(chunks, ceil_div(kRowsGrain, kNllChunk), [&](int64_t begin, int64_t end) {
    RowSums* next = partial + begin;
    rows.each_block(kNllChunk, begin, end, [&](const int64_t* at, int64_t n, int64_t) {
      RowSums sums;
      for (int64_t r = 0; r < n; ++r) {
        const int64_t t = with.at(at[1] + r * rows.along_stride[1]);
        T value = 0;
        if (with.counts(t)) {
          const T w = with.weight_of(t);
          value = -w * x.as<const T>()[at[0] + r * rows.along_stride[0] + t * rows.class_stride[0]];
          sums.loss += value;
          sums.weight += w;
        } else if (t != with.ignored && !sums.bad) {
          sums.bad = 1, sums.bad_index = t;
        }
        if (each) loss.as<T>()[at[2] + r * rows.along_stride[2]] = value;
      }
      *next++ = sums;
    });
  });
  if (leads_team()) {
    RowSums all;
    for (int64_t c = 0; c < chunks; ++c) {
      all.loss += partial[c].loss;
      all.weight += partial[c].weight;
      if (!all.bad && partial[c].bad) all.bad = 1, all.bad_index = partial[c].bad_index;
    }
    if (reduction == Reduced::mean)
      *loss.as<T>() = static_cast<T>(all.loss / all.weight);
    else if (reduction == Reduced::sum)
      *loss.as<T>() = static_cast<T>(all.loss);
    *i.operands[1].as<T>() = each ? T(0) : static_cast<T>(all.weight);
    *i.operands[2].as<int64_t>() = !all.bad                    ? kAllWell
                                   : all.bad_index == kAllWell ? INT64_MIN
                                                               : all.bad_index;
  }
  wait_for_team();
}

// nll_loss: loss, total_weight, bad = x, target, [weight]; code: reduction, index that is ignored, whether
// there are weights
// x (..., classes), target (..., classes) expanded along the classes, int64 or uint8, weight (classes).
// Reduction 0 gives the losses of the rows, expanded as target, and total_weight 0; 1 their sum over
// total_weight, that of the weights of the rows that count, 2 the sum. The row of an index that is out of
// range is ignored.
void nll_loss(const Instruction& i) {
  if (i.operands[3].dtype == DType::f32)
    losses<float>(i);
  else
    losses<double>(i);
}

// A row's gradient at its target, without the sign; 0 if the row does not count.
template <class T>
struct RowScale {
  Targets<T> with;
  const T* slope;
  T divisor;

  T of(int64_t t, int64_t slope_at) const {
    return with.counts(t) ? with.weight_of(t) * (slope[slope_at] / divisor) : T(0);
  }
};

// The operands after those named first: g, target, total_weight, [weight].
template <class T>
RowScale<T> row_scale(const Instruction& i, const TensorView* from, int64_t classes) {
  const bool mean = static_cast<Reduced>(i.code[0]) == Reduced::mean;
  return {targets<T>(from[1], i.code[2] ? from + 3 : nullptr, i.code[1], classes), from[0].as<const T>(),
          mean ? *from[2].as<const T>() : T(1)};
}

template <class T>
void zero_gradients(const Instruction& i) {
  const TensorView& dx = i.operands[0];
  const TensorView* const tensors[] = {&dx, &i.operands[1], &i.operands[2]};
  const ClassRows rows(tensors, 3, dx.ndim - 1);
  const RowScale<T> scale = row_scale<T>(i, i.operands + 1, rows.classes);
  const int64_t most = ceil_div(kNllChunk, rows.classes), stride = rows.class_stride[0];
  parallel_for(rows.blocks(most), ceil_div(kRowsGrain, rows.classes * most), [&](int64_t begin, int64_t end) {
    rows.each_block(most, begin, end, [&](const int64_t* at, int64_t n, int64_t) {
      for (int64_t r = 0; r < n; ++r) {
        T* const to = dx.as<T>() + at[0] + r * rows.along_stride[0];
        if (stride == 1)
          __builtin_memset(to, 0, static_cast<size_t>(rows.classes) * sizeof(T));
        else
          for (int64_t k = 0; k < rows.classes; ++k) to[k * stride] = 0;
        const int64_t t = scale.with.at(at[2] + r * rows.along_stride[2]);
        if (scale.with.counts(t)) to[t * stride] = -scale.of(t, at[1] + r * rows.along_stride[1]);
      }
    });
  });
}

// nll_gradient: dx = g, target, total_weight, [weight]; code as for nll_loss
// dx (..., classes); g, which is one value where the losses are reduced, and target are expanded to it. Rows
// whose index is out of range get 0.
void nll_gradient(const Instruction& i) {
  const TensorView& dx = i.operands[0];
  if (dx.numel() == 0) return;
  if (dx.dtype == DType::f32)
    zero_gradients<float>(i);
  else
    zero_gradients<double>(i);
}

// to = exp(from) factor, for rows of any strides.
template <class T>
void scaled_row(const T* from, int64_t from_stride, T factor, int64_t classes, T* to, int64_t to_stride) {
  constexpr int64_t kL = kLanes<T>;
  if (from_stride != 1 || to_stride != 1) {
    for (int64_t k = 0; k < classes; ++k) to[k * to_stride] = exp(splat(from[k * from_stride]))[0] * factor;
    return;
  }
  for (int64_t k = 0; k < classes; k += kL) {
    const int lanes = static_cast<int>(min(kL, classes - k));
    store_lanes(to + k, exp(load_lanes(from + k, lanes)) * factor, lanes);
  }
}

template <class T>
void softmax_gradients(const Instruction& i) {
  const TensorView &dx = i.operands[0], &y = i.operands[1];
  const TensorView* const tensors[] = {&dx, &y, &i.operands[2], &i.operands[3]};
  const ClassRows rows(tensors, 4, dx.ndim - 1);
  const RowScale<T> scale = row_scale<T>(i, i.operands + 2, rows.classes);
  const int64_t classes = rows.classes, most = ceil_div(kNllChunk, classes);
  const int64_t to_stride = rows.class_stride[0], from_stride = rows.class_stride[1];
  const bool touching = to_stride == 1 && from_stride == 1 && rows.along_stride[0] == classes &&
                        rows.along_stride[1] == classes;
  parallel_for(rows.blocks(most), ceil_div(kRowsGrain, classes * most), [&](int64_t begin, int64_t end) {
    const FlushSubnormals flush;
    rows.each_block(most, begin, end, [&](const int64_t* at, int64_t n, int64_t) {
      T* const to = dx.as<T>() + at[0];
      const T* const from = y.as<const T>() + at[1];
      // For adjacent rows the exponentials are computed as if for one row, ignoring where each ends, and with
      // the common factor.
      const T common = touching && rows.along_stride[2] == 0 ? scale.slope[at[2]] / scale.divisor : T(1);
      if (touching) scaled_row(from, 1, common, n * classes, to, 1);
      for (int64_t r = 0; r < n; ++r) {
        T* const row = to + r * rows.along_stride[0];
        const int64_t t = scale.with.at(at[3] + r * rows.along_stride[3]);
        const T factor = scale.of(t, at[2] + r * rows.along_stride[2]);
        const bool counts = scale.with.counts(t);
        if (!touching || !counts || factor != common)
          scaled_row(from + r * rows.along_stride[1], from_stride, factor, classes, row, to_stride);
        if (counts) row[t * to_stride] -= factor;
      }
    });
  });
}

// cross_entropy_gradient: dx = y, g, target, total_weight, [weight]; code as for nll_loss
// The result of nll_gradient, propagated back through log_softmax, whose values are y:
// dx = scale (exp(y) - onehot). dx overlaps no input.
void cross_entropy_gradient(const Instruction& i) {
  const TensorView& dx = i.operands[0];
  if (dx.numel() == 0) return;
  if (dx.dtype == DType::f32)
    softmax_gradients<float>(i);
  else
    softmax_gradients<double>(i);
}

constexpr NamedInstruction kInstructions[] = {{"nll_loss", nll_loss},
                                              {"nll_gradient", nll_gradient},
                                              {"cross_entropy_gradient", cross_entropy_gradient}};

}  // namespace

InstructionFamily nll_instructions() {
  return {kInstructions, sizeof(kInstructions) / sizeof(*kInstructions)};
}

}  // namespace fastnn::FASTNN_ISA
