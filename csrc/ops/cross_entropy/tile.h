// Few classes, or classes that are strided: as many rows at once as a vector has lanes. Maximum, sum, exp and
// log then serve all of them together.
#pragma once

#include "core/parallel.h"
#include "core/scratch.h"
#include "core/transpose.h"
#include "core/vec_math.h"
#include "ops/cross_entropy/formulas.h"
#include "ops/cross_entropy/problem.h"

namespace fastnn::FASTNN_ISA {

namespace {

// Calls block(k, width) for squares of at most kLanes classes from k on; if all are whole, the last one
// overlaps the one before it.
template <class A, class Block>
FASTNN_INLINE void for_squares(int64_t classes, const Block& block) {
  constexpr int64_t kStep = kLanes<A>;
  if (classes < kStep) return block(int64_t{0}, static_cast<int>(classes));
  int64_t k = 0;
  for (; k + kStep <= classes; k += kStep) block(k, static_cast<int>(kStep));
  if (k < classes) block(classes - kStep, static_cast<int>(kStep));
}

// tile (classes, lanes) from n rows; lanes without a row are 0.
template <class T>
void load_tile(const T* x, int64_t row_stride, int64_t class_stride, int64_t classes, int n, Acc<T>* tile) {
  using A = Acc<T>;
  constexpr int kStep = kLanes<A>;
  if (class_stride != 1) {
    for (int64_t k = 0; k < classes; ++k)
      store(tile + k * kStep,
            n == kStep ? load(x + k * class_stride) : load_partial(x + k * class_stride, n));
    return;
  }
  for_squares<A>(classes, [&](int64_t k, int width) {
    Vec<A> rows[kStep];
    if (n == kStep && width == kStep) {
      load_transposed(x + k, row_stride, rows);
    } else {
      for (int lane = 0; lane < kStep; ++lane)
        rows[lane] = lane < n ? load_lanes(x + lane * row_stride + k, width) : Vec<A>{};
      transpose<A>(rows);
    }
    for (int i = 0; i < width; ++i) store(tile + (k + i) * kStep, rows[i]);
  });
}

template <class T>
void store_tile(T* x, int64_t row_stride, int64_t class_stride, int64_t classes, int n, const Acc<T>* tile) {
  using A = Acc<T>;
  constexpr int kStep = kLanes<A>;
  if (class_stride != 1) {
    for (int64_t k = 0; k < classes; ++k) store_lanes(x + k * class_stride, load(tile + k * kStep), n);
    return;
  }
  for_squares<A>(classes, [&](int64_t k, int width) {
    Vec<A> rows[kStep];
    for (int i = 0; i < kStep; ++i) rows[i] = i < width ? load(tile + (k + i) * kStep) : Vec<A>{};
    transpose<A>(rows);
    for (int lane = 0; lane < n; ++lane) store_lanes(x + lane * row_stride + k, rows[lane], width);
  });
}

// The largest of the classes, in four chains: one would wait for each comparison. (A NaN may be missed: the
// sum of the exponentials is NaN then.)
template <class A>
FASTNN_INLINE Vec<A> largest_class(int64_t classes, const A* tile) {
  constexpr int kStep = kLanes<A>;
  Vec<A> m[4];
  for (Vec<A>& v : m) v = load(tile);
  int64_t k = 1;
  for (; k + 4 <= classes; k += 4)
    for (int u = 0; u < 4; ++u) m[u] = max(m[u], load(tile + (k + u) * kStep));
  for (; k < classes; ++k) m[0] = max(m[0], load(tile + k * kStep));
  return max(max(m[0], m[1]), max(m[2], m[3]));
}

// Sum over the classes in two levels, so that the rounding error grows with its root.
template <class A, class Term>
FASTNN_INLINE Vec<A> sum_classes(int64_t classes, const Term& term) {
  constexpr int64_t kBlock = 64;
  Vec<A> total = {};
  for (int64_t begin = 0; begin < classes; begin += kBlock) {
    const int64_t end = begin + kBlock < classes ? begin + kBlock : classes;
    Vec<A> part = {};
    for (int64_t k = begin; k < end; ++k) part += term(k);
    total += part;
  }
  return total;
}

// n rows from `row` on, in memory at offsets `x_offset` of the logits and `offset` of everything else.
template <class T>
void tile_rows(const Problem<T>& p, int64_t row, int n, int64_t x_offset, int64_t offset, Sums& sums) {
  using A = Acc<T>;
  constexpr int kStep = kLanes<A>;
  const int64_t classes = p.args.classes, inner = p.args.inner, class_stride = inner;
  const int64_t row_stride = inner == 1 ? classes : 1, x_row_stride = inner == 1 ? p.args.outer_stride : 1;
  const size_t tile_size = static_cast<size_t>(classes) * kStep;
  const size_t tiles = 1 + p.dense + (p.probabilities != nullptr);
  A* const tile = static_cast<A*>(thread_scratch(Scratch::row, tiles * tile_size * sizeof(A)));
  // The exponentials, which overwrite the logits unless the loss has a term in every class.
  A* const e_tile = p.dense ? tile + tile_size : tile;
  A* const q_tile = tile + 2 * tile_size;
  load_tile(static_cast<const T*>(p.args.logits) + x_offset, x_row_stride, class_stride, classes, n, tile);

  const Vec<A> largest = largest_class(classes, tile);

  // An ignored index is treated as class 0 until the end.
  int64_t index[kStep] = {};
  A index_weight[kStep] = {}, index_gap[kStep] = {};
  bool ignored[kStep] = {};
  if (!p.probabilities) {
    for (int lane = 0; lane < n; ++lane) {
      ignored[lane] = p.ignored(row + lane);
      index[lane] = ignored[lane] ? 0 : p.index_of(row + lane);
      index_weight[lane] = p.keep * p.weight_of(index[lane]);
      index_gap[lane] = largest[lane] - tile[index[lane] * kStep + lane];
    }
  }

  const Vec<A> total = sum_classes<A>(classes, [&](int64_t k) {
    const Vec<A> e = exp(load(tile + k * kStep) - largest);
    store(e_tile + k * kStep, e);
    return e;
  });
  const Vec<A> log_total = log(total), lse = largest + log_total;

  Vec<A> pulls = load(index_weight), loss = class_loss(pulls, load(index_gap), log_total);
  if (p.probabilities) {
    load_tile(p.probabilities + offset, row_stride, class_stride, classes, n, q_tile);
    for (int64_t k = 0; k < classes; ++k)
      store(q_tile + k * kStep,
            smoothed_probability(load(q_tile + k * kStep), p.weight_of(k), p.keep, p.smooth));
    pulls = sum_classes<A>(classes, [&](int64_t k) { return load(q_tile + k * kStep); });
    loss = sum_classes<A>(classes, [&](int64_t k) {
      return class_loss(load(q_tile + k * kStep), largest - load(tile + k * kStep), log_total);
    });
  } else if (p.dense) {
    pulls += p.smooth * p.dense_weight;
    loss += sum_classes<A>(classes, [&](int64_t k) {
      return class_loss(p.smooth * p.weight_of(k), largest - load(tile + k * kStep), log_total);
    });
  }
  for (int lane = 0; lane < n; ++lane) {
    if (ignored[lane])
      finish_row(p, row + lane, 0, 0, sums);
    else
      finish_row(p, row + lane, loss[lane], lse[lane], sums);
  }
  if (!p.args.gradient) return;

  const Vec<A> factor = softmax_factor(pulls, lse, total, p.gradient_scale, p.z_scale);
  for (int64_t k = 0; k < classes; ++k) {
    Vec<A> g = load(e_tile + k * kStep) * factor;
    if (p.probabilities)
      g -= load(q_tile + k * kStep) * p.gradient_scale;
    else if (p.dense)
      g -= p.smooth * p.weight_of(k) * p.gradient_scale;
    store(tile + k * kStep, g);
  }
  if (!p.probabilities) {
    for (int lane = 0; lane < n; ++lane) {
      tile[index[lane] * kStep + lane] -= index_weight[lane] * p.gradient_scale;
      if (ignored[lane])
        for (int64_t k = 0; k < classes; ++k) tile[k * kStep + lane] = 0;
    }
  }
  store_tile(static_cast<T*>(p.args.gradient) + offset, row_stride, class_stride, classes, n, tile);
}

}  // namespace

}  // namespace fastnn::FASTNN_ISA
