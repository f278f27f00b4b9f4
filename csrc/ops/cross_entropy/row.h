// Many classes: one row at a time.
#pragma once

#include "core/block_sum.h"
#include "core/vec_math.h"
#include "ops/cross_entropy/formulas.h"
#include "ops/cross_entropy/problem.h"

namespace fastnn::FASTNN_ISA {

namespace {

template <class T>
constexpr T kInfinity = T(__builtin_inf());

template <class A>
FASTNN_INLINE A exp_scalar(A x) {
  return exp(splat(x))[0];
}

template <class A>
FASTNN_INLINE A max_of_lanes(Vec<A> v) {
  A tree[kLanes<A>];
  store(tree, v);
  for (int width = kLanes<A> / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) tree[i] = tree[i] < tree[i + width] ? tree[i + width] : tree[i];
  return tree[0];
}

template <class A>
struct RowMoments {
  A largest;
  double total;  // sum_k exp(x_k - largest)
};

template <class T>
FASTNN_INLINE Acc<T> block_max(const T* x, int64_t n) {
  using A = Acc<T>;
  constexpr int kStep = kLanes<A>;
  Vec<A> m[4];
  for (Vec<A>& v : m) v = splat(-kInfinity<A>);
  int64_t k = 0;
  for (; k + 4 * kStep <= n; k += 4 * kStep)
    for (int u = 0; u < 4; ++u) m[u] = max(m[u], load(x + k + u * kStep));
  for (; k + kStep <= n; k += kStep) m[0] = max(m[0], load(x + k));
  if (k < n) m[0] = max(m[0], load_filled(x + k, static_cast<int>(n - k), -kInfinity<A>));
  return max_of_lanes<A>(max(max(m[0], m[1]), max(m[2], m[3])));
}

// One pass over memory: each block moves the maximum first, then adds its exponentials. A NaN never becomes
// the maximum and makes the sum NaN.
template <class T>
RowMoments<Acc<T>> moments(const T* x, int64_t classes) {
  using A = Acc<T>;
  RowMoments<A> r = {-kInfinity<A>, 0};
  for (int64_t begin = 0; begin < classes; begin += kBlock<A>) {
    const int64_t n = classes - begin < kBlock<A> ? classes - begin : kBlock<A>;
    const A in_block = block_max(x + begin, n);
    if (r.largest < in_block) {
      if (begin > 0) r.total *= exp_scalar(r.largest - in_block);
      r.largest = in_block;
    }
    // Until a value above -inf has been seen, exp(-inf - 0) = 0 rather than exp(-inf + inf) = NaN.
    const A shift = r.largest == -kInfinity<A> ? A(0) : r.largest;
    r.total += block_sum(x + begin, n, -kInfinity<A>, [&](Vec<A> v, int64_t, int) { return exp(v - shift); });
  }
  return r;
}

// q_k of n lanes at class k; the other lanes are 0.
template <class T>
FASTNN_INLINE Vec<Acc<T>> dense_q(const Problem<T>& p, int64_t offset, int64_t k, int n) {
  using A = Acc<T>;
  const bool full = n == kLanes<A>;
  const auto read = [&](const T* from) { return full ? load(from) : load_partial(from, n); };
  Vec<A> q = splat(p.smooth);
  for (int lane = n; lane < kLanes<A>; ++lane) q[lane] = 0;
  if (p.probabilities) q += read(p.probabilities + offset + k) * p.keep;
  return p.args.weight ? q * read(static_cast<const T*>(p.args.weight) + k) : q;
}

template <class T>
void gradient_row(const Problem<T>& p, const T* x, int64_t offset, Acc<T> largest, Acc<T> factor) {
  using A = Acc<T>;
  constexpr int kStep = kLanes<A>;
  T* g = static_cast<T*>(p.args.gradient) + offset;
  const int64_t classes = p.args.classes;
  const int rest = static_cast<int>(classes % kStep);
  const int64_t full = classes - rest;
  if (!p.dense) {
    for (int64_t k = 0; k < full; k += kStep) {
      // The next row is fetched while this one waits for its stores; a prefetch beyond the last row is
      // ignored.
      __builtin_prefetch(x + p.args.outer_stride + k, 0, 2);
      store(g + k, exp(load(x + k) - largest) * factor);
    }
    if (rest) store_partial(g + full, exp(load_partial(x + full, rest) - largest) * factor, rest);
    return;
  }
  for (int64_t k = 0; k < full; k += kStep)
    store(g + k, exp(load(x + k) - largest) * factor - dense_q(p, offset, k, kStep) * p.gradient_scale);
  if (rest) {
    const Vec<A> q = dense_q(p, offset, full, rest) * p.gradient_scale;
    store_partial(g + full, exp(load_partial(x + full, rest) - largest) * factor - q, rest);
  }
}

template <class T>
void one_row(const Problem<T>& p, int64_t row, Sums& sums) {
  using A = Acc<T>;
  const int64_t classes = p.args.classes, offset = row * classes;
  const T* x = static_cast<const T*>(p.args.logits) + row * p.args.outer_stride;
  T* g = static_cast<T*>(p.args.gradient) + (p.args.gradient ? offset : 0);
  if (p.ignored(row)) {
    finish_row(p, row, 0, 0, sums);
    if (g) __builtin_memset(g, 0, static_cast<size_t>(classes) * sizeof(T));
    return;
  }
  const RowMoments<A> r = moments(x, classes);
  const double log_total = __builtin_log(r.total), lse = static_cast<double>(r.largest) + log_total;

  double q_sum = 0, loss = 0;
  if (p.dense) {
    const A log_total_of_lane = static_cast<A>(log_total);
    for (int64_t begin = 0; begin < classes; begin += kBlock<A>) {
      const int64_t n = classes - begin < kBlock<A> ? classes - begin : kBlock<A>;
      loss += block_sum(x + begin, n, r.largest, [&](Vec<A> v, int64_t k, int lanes) {
        return class_loss(dense_q(p, offset, begin + k, lanes), r.largest - v, splat(log_total_of_lane));
      });
      if (p.probabilities)
        q_sum += block_sum(x + begin, n, A(0), [&](Vec<A>, int64_t k, int lanes) {
          return dense_q(p, offset, begin + k, lanes);
        });
    }
    if (!p.probabilities) q_sum = static_cast<double>(p.smooth) * p.dense_weight;
  }
  double pulls = q_sum;
  int64_t index = 0;
  A index_weight = 0, at_index = 0;
  if (!p.probabilities) {
    index = p.index_of(row);
    index_weight = p.keep * p.weight_of(index);
    pulls += index_weight;
    at_index = to_acc(x[index]);  // read here: the gradient may be written over the logits
    loss += class_loss<double>(index_weight, r.largest - at_index, log_total);
  }
  finish_row(p, row, loss, lse, sums);
  if (!g) return;

  const A factor =
      static_cast<A>(softmax_factor<double, double>(pulls, lse, r.total, p.gradient_scale, p.z_scale));
  gradient_row(p, x, offset, r.largest, factor);
  if (!p.probabilities) {
    A gradient = exp_scalar(at_index - r.largest) * factor - index_weight * p.gradient_scale;
    if (p.dense) gradient -= p.smooth * p.weight_of(index) * p.gradient_scale;
    g[index] = from_acc<T>(gradient);
  }
}

}  // namespace

}  // namespace fastnn::FASTNN_ISA
