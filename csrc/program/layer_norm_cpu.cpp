// Normalisation of rows.
#include "core/block_sum.h"
#include "core/parallel.h"
#include "program/instruction.h"

namespace fastnn::FASTNN_ISA {

namespace {

// Values that are worth a second thread.
constexpr int64_t kNormGrain = 8192;

// Rows that are processed together, so that a stall of one does not stop the others.
constexpr int kRows = 4;

// Values that are added in T, in the lanes of one vector, before they are added to a sum in double.
template <class T>
constexpr int64_t kRun = 64 * kLanes<T>;

// sums[r] = sum of term(r, x_k) over row r of n values. Lanes past the end read 0 and are dropped.
template <class T, int rows, class Term>
FASTNN_INLINE void row_sums(const T* x, int64_t n, double (&sums)[rows], const Term& term) {
  constexpr int kStep = kLanes<T>;
  for (int r = 0; r < rows; ++r) sums[r] = 0;
  for (int64_t b = 0; b < n; b += kRun<T>) {
    const int64_t stop = n - b < kRun<T> ? n : b + kRun<T>;
    Vec<T> s[rows] = {};
    int64_t k = b;
    for (; k + kStep <= stop; k += kStep)
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) s[r] += term(r, load(x + r * n + k));
    const int rest = static_cast<int>(stop - k);
    if (rest > 0)
      for (int r = 0; r < rows; ++r) s[r] += first_lanes<T>(term(r, load_partial(x + r * n + k, rest)), rest);
    for (int r = 0; r < rows; ++r) sums[r] += sum(s[r]);
  }
}

template <class T>
struct Affine {
  const T* weight;  // or null
  const T* bias;    // or null
};

// y = (x - mean) scale, then multiplied by the weight, plus the bias.
template <class T, bool with_weight, bool with_bias>
void normalise_row(T* y, const T* x, int64_t n, T mean, T scale, const Affine<T>& affine) {
  constexpr int kStep = kLanes<T>;
  for (int64_t k = 0; k < n; k += kStep) {
    const int lanes = n - k < kStep ? static_cast<int>(n - k) : kStep;
    Vec<T> v = (load_lanes(x + k, lanes) - mean) * scale;
    if constexpr (with_weight) v = v * load_lanes(affine.weight + k, lanes);
    if constexpr (with_bias) v = v + load_lanes(affine.bias + k, lanes);
    store_lanes(y + k, v, lanes);
  }
}

template <class T>
struct LayerNorm {
  T *y, *mean, *rstd;
  const T* x;
  int64_t n;
  double eps;
  Affine<T> affine;
  void (*normalise)(T*, const T*, int64_t, T, T, const Affine<T>&);

  template <int rows>
  void run(int64_t first) const {
    const T* const from = x + first * n;
    const double share = 1 / static_cast<double>(n);
    double sums[rows];
    T means[rows], scales[rows];
    row_sums<T, rows>(from, n, sums, [](int, Vec<T> v) { return v; });
    for (int r = 0; r < rows; ++r) means[r] = static_cast<T>(sums[r] * share);
    row_sums<T, rows>(from, n, sums, [&](int r, Vec<T> v) {
      const Vec<T> d = v - means[r];
      return d * d;
    });
    for (int r = 0; r < rows; ++r) scales[r] = static_cast<T>(1 / __builtin_sqrt(sums[r] * share + eps));
    for (int r = 0; r < rows; ++r) {
      mean[first + r] = means[r];
      rstd[first + r] = scales[r];
      normalise(y + (first + r) * n, from + r * n, n, means[r], scales[r], affine);
    }
  }
};

template <class T>
void layer_norm_typed(const Instruction& i) {
  const TensorView& x = i.operands[3];
  const TensorView* more = i.operands + 4;
  const bool with_weight = i.code[0], with_bias = i.code[1];
  const int64_t rows = i.operands[1].numel(), n = rows ? x.numel() / rows : 0;
  const T* const weight = with_weight ? (more++)->as<const T>() : nullptr;
  const LayerNorm<T> norm{i.operands[0].as<T>(),
                          i.operands[1].as<T>(),
                          i.operands[2].as<T>(),
                          x.as<const T>(),
                          n,
                          i.numbers[0],
                          {weight, with_bias ? more->as<const T>() : nullptr},
                          with_weight
                              ? with_bias ? normalise_row<T, true, true> : normalise_row<T, true, false>
                          : with_bias ? normalise_row<T, false, true>
                                      : normalise_row<T, false, false>};
  const int64_t groups = (rows + kRows - 1) / kRows;
  parallel_for(groups, kNormGrain / (kRows * n + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      int64_t row = group * kRows;
      if (row + kRows <= rows) {
        norm.template run<kRows>(row);
      } else {
        for (; row < rows; ++row) norm.template run<1>(row);
      }
    }
  });
}

// Each row of x minus its mean and divided by its deviation. Operands, contiguous: y, mean, rstd, x, weight
// if code[0], bias if code[1]. There are as many rows as means. numbers[0] is added to the variance.
void layer_norm(const Instruction& i) {
  if (i.operands[0].dtype == DType::f64) return layer_norm_typed<double>(i);
  layer_norm_typed<float>(i);
}

enum Wanted : int64_t { kWantsX = 1, kWantsWeight = 2, kWantsBias = 4, kHasWeight = 8 };

template <class T>
struct Gradients {
  T *dx, *dweight, *dbias;  // or null
  const T *dy, *x, *mean, *rstd;
  const T* weight;  // or null
  int64_t rows, n;
};

// dx of some rows; adds their share to the sums of the weight's and the bias's gradients, if they are
// asked for.
template <class T, int rows, bool with_sums>
void gradient_of_rows(const Gradients<T>& g, int64_t first, T* weight_sums, T* bias_sums) {
  constexpr int kStep = kLanes<T>;
  const int64_t n = g.n;
  const T *const dy = g.dy + first * n, *const x = g.x + first * n;
  double sum_g[rows] = {}, sum_gx[rows] = {};
  T mean[rows], rstd[rows];
  for (int r = 0; r < rows; ++r) {
    mean[r] = g.mean[first + r];
    rstd[r] = g.rstd[first + r];
  }
  for (int64_t b = 0; b < n; b += kRun<T>) {
    const int64_t stop = n - b < kRun<T> ? n : b + kRun<T>;
    Vec<T> s[rows] = {}, sx[rows] = {};
    for (int64_t k = b; k < stop; k += kStep) {
      const int lanes = stop - k < kStep ? static_cast<int>(stop - k) : kStep;
      const Vec<T> weight = g.weight ? load_lanes(g.weight + k, lanes) : splat(T(1));
      Vec<T> of_weight = {}, of_bias = {};
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) {
        // Missing lanes of dy are 0, and so are their terms, unless the row is not finite.
        const Vec<T> d = load_lanes(dy + r * n + k, lanes);
        Vec<T> dx = d * ((load_lanes(x + r * n + k, lanes) - mean[r]) * rstd[r]);
        if (lanes < kStep) dx = first_lanes<T>(dx, lanes);
        s[r] += d * weight;
        sx[r] += dx * weight;
        of_weight += dx;
        of_bias += d;
      }
      if constexpr (with_sums) {
        store_lanes(weight_sums + k, load_lanes(weight_sums + k, lanes) + of_weight, lanes);
        store_lanes(bias_sums + k, load_lanes(bias_sums + k, lanes) + of_bias, lanes);
      }
    }
    for (int r = 0; r < rows; ++r) {
      sum_g[r] += sum(s[r]);
      sum_gx[r] += sum(sx[r]);
    }
  }
  if (!g.dx) return;
  const double share = 1 / static_cast<double>(n);
  T mean_g[rows], mean_gx[rows];
  for (int r = 0; r < rows; ++r) {
    mean_g[r] = static_cast<T>(sum_g[r] * share);
    mean_gx[r] = static_cast<T>(sum_gx[r] * share);
  }
  for (int r = 0; r < rows; ++r)
    for (int64_t k = 0; k < n; k += kStep) {
      const int lanes = n - k < kStep ? static_cast<int>(n - k) : kStep;
      const Vec<T> xhat = (load_lanes(x + r * n + k, lanes) - mean[r]) * rstd[r];
      Vec<T> d = load_lanes(dy + r * n + k, lanes);
      if (g.weight) d *= load_lanes(g.weight + k, lanes);
      store_lanes(g.dx + (first + r) * n + k, ((d - mean_g[r]) - xhat * mean_gx[r]) * rstd[r], lanes);
    }
}

template <class T, bool with_sums>
void gradient_of_block(const Gradients<T>& g, int64_t begin, int64_t end, T* weight_sums, T* bias_sums) {
  for (; begin + kRows <= end; begin += kRows)
    gradient_of_rows<T, kRows, with_sums>(g, begin, weight_sums, bias_sums);
  for (; begin < end; ++begin) gradient_of_rows<T, 1, with_sums>(g, begin, weight_sums, bias_sums);
}

// Rows are summed in blocks and then the blocks: the same blocks for any number of threads, at most 64.
int64_t rows_in_block(int64_t rows) {
  constexpr int64_t kLeast = 32, kMostBlocks = 64;
  const int64_t size = (rows + kMostBlocks - 1) / kMostBlocks;
  return size < kLeast ? kLeast : size;
}

template <class T>
void add_blocks(T* out, const T* sums, int64_t blocks, int64_t stride, int64_t begin, int64_t end) {
  constexpr int kStep = kLanes<T>;
  for (int64_t k = begin; k < end; k += kStep) {
    const int lanes = end - k < kStep ? static_cast<int>(end - k) : kStep;
    Vec<T> total = {};
    for (int64_t b = 0; b < blocks; ++b) total += load_lanes(sums + b * stride + k, lanes);
    store_lanes(out + k, total, lanes);
  }
}

template <class T>
void layer_norm_backward_typed(const Instruction& i) {
  const int64_t wanted = i.code[0];
  const TensorView* next = i.operands;
  Gradients<T> g{};
  g.dx = wanted & kWantsX ? (next++)->as<T>() : nullptr;
  g.dweight = wanted & kWantsWeight ? (next++)->as<T>() : nullptr;
  g.dbias = wanted & kWantsBias ? (next++)->as<T>() : nullptr;
  const int64_t size = next->numel();
  g.dy = (next++)->as<const T>();
  g.x = (next++)->as<const T>();
  g.rows = next->numel();
  g.mean = (next++)->as<const T>();
  g.rstd = (next++)->as<const T>();
  g.weight = wanted & kHasWeight ? next->as<const T>() : nullptr;
  g.n = g.rows ? size / g.rows : i.code[1];
  const int64_t n = g.n, per_block = rows_in_block(g.rows), blocks = (g.rows + per_block - 1) / per_block;
  const size_t bytes = static_cast<size_t>(2 * blocks * n) * sizeof(T);
  T* const sums =
      g.dweight || g.dbias ? static_cast<T*>(shared_scratch(Scratch::accumulate, bytes)) : nullptr;
  parallel_for(blocks, kNormGrain / (per_block * n) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t stop = (b + 1) * per_block < g.rows ? (b + 1) * per_block : g.rows;
      if (sums) {
        T* const own = sums + 2 * b * n;
        __builtin_memset(own, 0, static_cast<size_t>(2 * n) * sizeof(T));
        gradient_of_block<T, true>(g, b * per_block, stop, own, own + n);
      } else {
        gradient_of_block<T, false>(g, b * per_block, stop, nullptr, nullptr);
      }
    }
  });
  if (!sums) return;
  parallel_for(n, kNormGrain / (2 * blocks + 1) + 1, [&](int64_t begin, int64_t end) {
    if (g.dweight) add_blocks(g.dweight, sums, blocks, 2 * n, begin, end);
    if (g.dbias) add_blocks(g.dbias, sums + n, blocks, 2 * n, begin, end);
  });
}

// The gradients of layer_norm that the bits of code[0] ask for. Operands, contiguous: dx, dweight, dbias, of
// which only those asked for; dy, x, mean, rstd, weight if its bit is set. code[1] is the length of a row.
void layer_norm_backward(const Instruction& i) {
  if (i.operands[0].dtype == DType::f64) return layer_norm_backward_typed<double>(i);
  layer_norm_backward_typed<float>(i);
}

constexpr NamedInstruction kInstructions[] = {{"layer_norm", layer_norm},
                                              {"layer_norm_backward", layer_norm_backward}};

}  // namespace

InstructionFamily layer_norm_instructions() {
  return {kInstructions, sizeof(kInstructions) / sizeof(*kInstructions)};
}

}  // namespace fastnn::FASTNN_ISA
