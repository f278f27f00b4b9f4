#include "ops/linear_cross_entropy/linear_cross_entropy.h"

#include "core/dtype_dispatch.h"
#include "core/scratch.h"
#include "gemm/gemm.h"
#include "ops/linear/gradient_pass.h"
#include "ops/linear/linear.h"

namespace fastnn::FASTNN_ISA {

namespace {

// Stores a row segment of scale * sum, or adds it to the stored one.
template <class A>
struct Accumulate {
  A* sums;  // (M, N) contiguous
  int64_t n;
  A scale;
  bool add;

  A* direct() const { return add || scale != 1 ? nullptr : sums; }
  FASTNN_INLINE void operator()(int64_t i, int64_t j, Vec<A> v, int lanes) const {
    A* const to = sums + i * n + j;
    v *= splat(scale);
    if (add) v += lanes == kLanes<A> ? load(to) : load_partial(to, lanes);
    store_lanes(to, v, lanes);
  }
};

const void* at_row(const void* data, int64_t row, int64_t bytes) {
  return static_cast<const char*>(data) + row * bytes;
}

template <class T>
int64_t run(const LinearCrossEntropyArgs& args) {
  using A = Acc<T>;
  constexpr int64_t kSize = sizeof(T);
  const int64_t n = args.x.shape[0], k = args.x.shape[1], classes = args.weight.shape[0];
  const Operand<T> weight = {args.weight.as<const T>(), args.weight.strides[0], args.weight.strides[1]};
  const Operand<T> x = {args.x.as<const T>(), args.x.strides[0], args.x.strides[1]};
  const CrossEntropyKernels cross_entropy = cross_entropy_kernels();

  CrossEntropyArgs whole = args.loss;
  whole.dtype = args.x.dtype;
  whole.outer = n;
  whole.classes = whole.outer_stride = classes;
  whole.inner = 1;
  const CrossEntropyTotals totals = cross_entropy.count(whole);
  if (totals.bad_row >= 0) return totals.bad_row;

  // Chunks depend on the shape alone, so no sum depends on the number of threads.
  const EvenParts chunks(n, ceil_div(n, args.chunk_rows));
  const ScopedBuffer buffer(chunks.begin(1) * classes * kSize);
  const bool single = args.loss.reduction != Reduction::none;
  double total = 0;
  for (int64_t c = 0; c < chunks.count; ++c) {
    const int64_t begin = chunks.begin(c), rows = chunks.begin(c + 1) - begin;
    const TensorView logits = contiguous_matrix(buffer.data(), args.x.dtype, rows, classes);
    TensorView part = args.x;
    part.data = const_cast<T*>(x.at(begin, 0).data);
    part.shape[0] = rows;
    linear_kernels().forward(part, args.weight, args.bias, Activation::none, logits, nullptr);

    CrossEntropyArgs loss = whole;
    loss.outer = rows;
    loss.logits = logits.data;
    loss.gradient = args.dx || args.dw || args.db ? logits.data : nullptr;
    loss.target = at_row(whole.target, begin, dtype_size(whole.target_dtype));
    loss.totals = &totals;
    loss.loss = single ? nullptr : const_cast<void*>(at_row(whole.loss, begin, kSize));
    const CrossEntropyResult result = cross_entropy.forward(loss);
    total += result.loss;
    if (!loss.gradient) continue;

    if (args.dy) cross_entropy.scale_gradient(loss, at_row(args.dy, begin, kSize), false, 1);
    const Operand<T> g = {logits.as<const T>(), classes, 1};
    const A scale = static_cast<A>(result.gradient_scale);
    if (args.dx) {
      const Accumulate<A> sums{args.dx->as<A>() + begin * k, k, scale, false};
      gemm<T>(rows, k, classes, g, weight, epilogue_of<T>(sums));
    }
    if (args.dw) {
      const Accumulate<A> sums{args.dw->as<A>(), k, scale, c > 0};
      gemm<T>(classes, k, rows, g.transposed(), x.at(begin, 0), epilogue_of<T>(sums));
    }
    if (args.db) {
      const Accumulate<A> sums{args.db->as<A>(), classes, scale, c > 0};
      gradient_pass<T>(rows, classes, g, Activation::none, g, nullptr, &sums);
    }
  }
  if (single) *static_cast<T*>(whole.loss) = from_acc<T>(static_cast<A>(total));
  return -1;
}

int64_t linear_cross_entropy(const LinearCrossEntropyArgs& args) {
  int64_t bad_row = -1;
  dispatch_floating(args.x.dtype, [&](auto tag) { bad_row = run<typename decltype(tag)::type>(args); });
  return bad_row;
}

}  // namespace

LinearCrossEntropyKernels linear_cross_entropy_kernels() { return {linear_cross_entropy}; }

}  // namespace fastnn::FASTNN_ISA
