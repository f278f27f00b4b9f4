#include "ops/cross_entropy/cross_entropy.h"

#include "core/dtype_dispatch.h"
#include "core/flush_subnormals.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "ops/cross_entropy/formulas.h"
#include "ops/cross_entropy/problem.h"
#include "ops/cross_entropy/row.h"
#include "ops/cross_entropy/tile.h"

namespace fastnn::FASTNN_ISA {

namespace {

// Up to this many classes, rows are laid out along the lanes of a vector: maximum, sum, exp and log then
// serve as many rows as there are lanes. Above it, one row at a time, whose reductions across the lanes and
// scalar logarithm cost less than the transposition would. Measured on Zen 4 (AVX-512), 256 rows, forward,
// one row at a time / along the lanes, us: 100 classes 22 / 13, 200 31 / 22, 300 42 / 34, 400 42 / 45, 512 50
// / 61.
constexpr int64_t kLaneClasses = 256;

// Elements of a chunk of rows, whose losses are summed into one partial sum. Chunks depend on the shape
// alone, so the sum does not depend on the number of threads.
constexpr int64_t kChunkElements = 4096;
// Loss and gradient of an element take about half a nanosecond and a parallel region costs about half a
// microsecond, so a thread should have some thousands of elements.
constexpr int64_t kGrainElements = 8192;

// Checks every index before anything is written: one that is out of range must not be used.
template <class T>
CrossEntropyTotals count_rows(const Problem<T>& p) {
  const int64_t rows = p.args.outer * p.args.inner;
  CrossEntropyTotals totals = {-1, 0, 0};
  if (p.probabilities) return {-1, rows, static_cast<double>(rows)};
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t index = p.index_of(row);
    if (index == p.args.ignore_index) continue;
    if (index < 0 || index >= p.args.classes) return {row, 0, 0};
    ++totals.rows;
    if (p.args.weight) totals.weight += p.weight_of(index);
  }
  if (!p.args.weight) totals.weight = static_cast<double>(totals.rows);
  return totals;
}

template <class T>
Problem<T> problem(const CrossEntropyArgs& args) {
  const T* probabilities = args.target_dtype == args.dtype ? static_cast<const T*>(args.target) : nullptr;
  return {args, probabilities, probabilities || args.label_smoothing != 0};
}

template <class T>
CrossEntropyResult forward(const CrossEntropyArgs& args) {
  using A = Acc<T>;
  constexpr int kStep = kLanes<A>;
  const int64_t rows = args.outer * args.inner, classes = args.classes;
  Problem<T> p = problem<T>(args);
  const CrossEntropyTotals totals = args.totals ? *args.totals : count_rows(p);
  if (totals.bad_row >= 0) return {totals.bad_row, 1, 0};

  const bool mean = args.reduction == Reduction::mean;
  const CrossEntropyScales scales = cross_entropy_scales(mean, args.dtype == DType::f16, args.z_loss,
                                                         static_cast<double>(totals.rows), totals.weight);
  p.keep = static_cast<A>(1 - args.label_smoothing);
  p.smooth = static_cast<A>(args.label_smoothing / static_cast<double>(classes));
  double dense_weight = 0;
  for (int64_t k = 0; p.dense && k < classes; ++k) dense_weight += p.weight_of(k);
  p.dense_weight = static_cast<A>(dense_weight);
  p.gradient_scale = static_cast<A>(scales.gradient);
  p.z_scale = static_cast<A>(scales.z);

  // A unit of work is a tile or a row; tiles do not extend past the end of `inner`.
  const bool tiles = args.inner > 1 || classes <= kLaneClasses;
  const int64_t along = args.inner > 1 ? args.inner : rows;
  const int64_t tiles_along = (along + kStep - 1) / kStep;
  const int64_t units = tiles ? rows / along * tiles_along : rows, unit_size = classes * (tiles ? kStep : 1);
  const int64_t chunk = unit_size < kChunkElements ? kChunkElements / unit_size : 1;
  const int64_t chunks = (units + chunk - 1) / chunk, chunk_size = chunk * unit_size;
  const int64_t grain = chunk_size < kGrainElements ? kGrainElements / chunk_size : 1;
  Sums* partial =
      static_cast<Sums*>(shared_scratch(Scratch::accumulate, static_cast<size_t>(chunks) * sizeof(Sums)));

  // The gradient of a class with a far smaller logit is subnormal, while that of a slightly smaller one is 0,
  // and products with it are slow (core/flush_subnormals.h). Weights and probabilities may be that small
  // themselves.
  const bool flush_small = !args.weight && !p.probabilities;
  parallel_for(chunks, grain, [&](int64_t begin, int64_t end) {
    const FlushSubnormals flush(flush_small);
    for (int64_t c = begin; c < end; ++c) {
      Sums sums;
      const int64_t last = (c + 1) * chunk < units ? (c + 1) * chunk : units;
      for (int64_t unit = c * chunk; unit < last; ++unit) {
        if (!tiles) {
          one_row(p, unit, sums);
          continue;
        }
        const int64_t outer = unit / tiles_along, first = unit % tiles_along * kStep;
        const int n = static_cast<int>(along - first < kStep ? along - first : kStep);
        const bool strided = args.inner > 1;
        const int64_t offset = strided ? outer * classes * args.inner + first : first * classes;
        const int64_t x_offset = strided ? outer * args.outer_stride + first : first * args.outer_stride;
        tile_rows(p, outer * along + first, n, x_offset, offset, sums);
      }
      partial[c] = sums;
    }
  });

  double total = 0;
  if (args.reduction != Reduction::none) {
    Sums sums;
    for (int64_t c = 0; c < chunks; ++c) {
      sums.loss += partial[c].loss;
      sums.square += partial[c].square;
    }
    double loss = mean ? sums.loss / totals.weight : sums.loss;
    // With smoothing torch divides the part of the classes separately, which gives 0 / 0.
    if (mean && p.dense && totals.weight == 0) loss = __builtin_nan("");
    const double z_loss = args.z_loss == 0 ? 0 : args.z_loss * sums.square * scales.square;
    total = loss + z_loss;
    if (args.loss && leads_team()) *static_cast<T*>(args.loss) = from_acc<T>(static_cast<A>(total));
    wait_for_team();
  }
  return {-1, scales.late, total};
}

CrossEntropyTotals cross_entropy_count(const CrossEntropyArgs& args) {
  CrossEntropyTotals totals = {};
  dispatch_floating(args.dtype,
                    [&](auto tag) { totals = count_rows(problem<typename decltype(tag)::type>(args)); });
  return totals;
}

CrossEntropyResult cross_entropy_forward(const CrossEntropyArgs& args) {
  CrossEntropyResult result = {-1, 1, 0};
  dispatch_floating(args.dtype, [&](auto tag) { result = forward<typename decltype(tag)::type>(args); });
  return result;
}

template <class T>
void scale_gradient(const CrossEntropyArgs& args, const T* dy, bool scalar, double scale) {
  using A = Acc<T>;
  constexpr int kStep = kLanes<A>;
  T* const gradient = static_cast<T*>(args.gradient);
  const int64_t classes = args.classes, inner = args.inner;
  const A common = static_cast<A>(static_cast<double>(to_acc(dy[0])) * scale);
  if (scalar && common == 1) return;
  // A line is a set of values with the same factors: the classes of one row, or one class of `inner` rows.
  const bool strided = inner > 1;
  const int64_t lines = strided ? args.outer * classes : args.outer, length = strided ? inner : classes;
  const int64_t grain = length < kGrainElements ? kGrainElements / length : 1;
  parallel_for(lines, grain, [&](int64_t begin, int64_t end) {
    const FlushSubnormals flush;
    for (int64_t line = begin; line < end; ++line) {
      T* g = gradient + line * length;
      const T* factors = strided ? dy + line / classes * inner : dy + line;
      const A factor = scalar ? common : to_acc(*factors) * static_cast<A>(scale);
      for (int64_t k = 0; k < length; k += kStep) {
        const int n = static_cast<int>(length - k < kStep ? length - k : kStep);
        const Vec<A> by =
            scalar || !strided ? splat(factor) : load_partial(factors + k, n) * static_cast<A>(scale);
        if (n == kStep)
          store(g + k, load(g + k) * by);
        else
          store_partial(g + k, load_partial(g + k, n) * by, n);
      }
    }
  });
}

void cross_entropy_scale_gradient(const CrossEntropyArgs& args, const void* dy, bool scalar, double scale) {
  dispatch_floating(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    scale_gradient(args, static_cast<const T*>(dy), scalar, scale);
  });
}

}  // namespace

CrossEntropyKernels cross_entropy_kernels() {
  return {cross_entropy_count, cross_entropy_forward, cross_entropy_scale_gradient};
}

}  // namespace fastnn::FASTNN_ISA
