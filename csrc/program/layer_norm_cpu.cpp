// Normalisation of rows.
#include "core/block_sum.h"
#include "core/parallel.h"
#include "program/instruction.h"

namespace fastnn::FASTNN_ISA {

namespace {

// Values that are worth a second thread.
constexpr int64_t kNormGrain = 8192;

// Sum of term(x_k, k, lanes) over a row of any length; lanes past the end see `fill`.
template <class T, class Term>
FASTNN_INLINE double row_sum(const T* x, int64_t n, T fill, const Term& term) {
  double total = 0;
  for (int64_t b = 0; b < n; b += kBlock<T>) {
    const int64_t length = n - b < kBlock<T> ? n - b : kBlock<T>;
    total +=
        block_sum(x + b, length, fill, [&](Vec<T> v, int64_t k, int lanes) { return term(v, b + k, lanes); });
  }
  return total;
}

template <class T>
struct Affine {
  const T* weight;  // or null
  const T* bias;    // or null
};

// y = (x - mean) scale, then times the weight and plus the bias.
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
void layer_norm_typed(const Instruction& i) {
  const TensorView& x = i.operands[3];
  T *const y = i.operands[0].as<T>(), *const means = i.operands[1].as<T>(),
           *const rstds = i.operands[2].as<T>();
  const TensorView* more = i.operands + 4;
  const bool with_weight = i.code[0], with_bias = i.code[1];
  const T* const weight = with_weight ? (more++)->as<const T>() : nullptr;
  const Affine<T> affine{weight, with_bias ? more->as<const T>() : nullptr};
  const auto normalise = with_weight
                             ? with_bias ? normalise_row<T, true, true> : normalise_row<T, true, false>
                         : with_bias ? normalise_row<T, false, true>
                                     : normalise_row<T, false, false>;
  const double eps = i.numbers[0];
  const int64_t rows = i.operands[1].numel(), n = rows ? x.numel() / rows : 0;
  parallel_for(rows, kNormGrain / (n + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const T* const row = x.as<const T>() + r * n;
      const double count = static_cast<double>(n);
      const T mean = static_cast<T>(row_sum(row, n, T(0), [](Vec<T> v, int64_t, int) { return v; }) / count);
      const double squares = row_sum(row, n, mean, [&](Vec<T> v, int64_t, int) {
        const Vec<T> d = v - mean;
        return d * d;
      });
      const T rstd = static_cast<T>(1 / __builtin_sqrt(squares / count + eps));
      means[r] = mean;
      rstds[r] = rstd;
      normalise(y + r * n, row, n, mean, rstd, affine);
    }
  });
}

// Each row of x less its mean and over its deviation. Operands, contiguous: y, mean, rstd, x, weight if
// code[0], bias if code[1]. There are as many rows as means. numbers[0] is added to the variance.
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

// dx of one row; adds the row's share to the sums of the weight's and the bias's gradients, where they are
// asked for.
template <class T>
void gradient_of_row(const Gradients<T>& g, int64_t r, T* weight_sums, T* bias_sums) {
  constexpr int kStep = kLanes<T>;
  const int64_t n = g.n;
  const T *const dy = g.dy + r * n, *const x = g.x + r * n;
  const T mean = g.mean[r], rstd = g.rstd[r];
  double sum_g = 0, sum_gx = 0;
  for (int64_t b = 0; b < n; b += kBlock<T>) {
    const int64_t stop = n - b < kBlock<T> ? n : b + kBlock<T>;
    Vec<T> s1[2] = {}, s2[2] = {};
    int u = 0;
    for (int64_t k = b; k < stop; k += kStep, u ^= 1) {
      const int lanes = stop - k < kStep ? static_cast<int>(stop - k) : kStep;
      // Missing lanes of dy are 0, and so are their terms.
      const Vec<T> d = load_lanes(dy + k, lanes), xhat = (load_lanes(x + k, lanes) - mean) * rstd;
      const Vec<T> dx = d * xhat, weight = g.weight ? load_lanes(g.weight + k, lanes) : splat(T(1));
      s1[u] += d * weight;
      s2[u] += lanes == kStep ? dx * weight : first_lanes<T>(dx * weight, lanes);
      if (weight_sums) store_lanes(weight_sums + k, load_lanes(weight_sums + k, lanes) + dx, lanes);
      if (bias_sums) store_lanes(bias_sums + k, load_lanes(bias_sums + k, lanes) + d, lanes);
    }
    sum_g += sum(s1[0] + s1[1]);
    sum_gx += sum(s2[0] + s2[1]);
  }
  if (!g.dx) return;
  const T mean_g = static_cast<T>(sum_g / static_cast<double>(n));
  const T mean_gx = static_cast<T>(sum_gx / static_cast<double>(n));
  for (int64_t k = 0; k < n; k += kStep) {
    const int lanes = n - k < kStep ? static_cast<int>(n - k) : kStep;
    const Vec<T> xhat = (load_lanes(x + k, lanes) - mean) * rstd;
    Vec<T> d = load_lanes(dy + k, lanes);
    if (g.weight) d *= load_lanes(g.weight + k, lanes);
    store_lanes(g.dx + r * n + k, ((d - mean_g) - xhat * mean_gx) * rstd, lanes);
  }
}

// Rows are summed in blocks and then the blocks: in the same ones for every number of threads, at most 64.
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
  const bool sums_weight = g.dweight, sums_bias = g.dbias;
  const size_t bytes = static_cast<size_t>(2 * blocks * n) * sizeof(T);
  T* const sums =
      sums_weight || sums_bias ? static_cast<T*>(shared_scratch(Scratch::accumulate, bytes)) : nullptr;
  parallel_for(blocks, kNormGrain / (per_block * n) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      T* const weight_sums = sums_weight ? sums + 2 * b * n : nullptr;
      T* const bias_sums = sums_bias ? sums + (2 * b + 1) * n : nullptr;
      const auto bytes_of_row = static_cast<size_t>(n) * sizeof(T);
      if (weight_sums) __builtin_memset(weight_sums, 0, bytes_of_row);
      if (bias_sums) __builtin_memset(bias_sums, 0, bytes_of_row);
      const int64_t stop = (b + 1) * per_block < g.rows ? (b + 1) * per_block : g.rows;
      for (int64_t r = b * per_block; r < stop; ++r) gradient_of_row(g, r, weight_sums, bias_sums);
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
