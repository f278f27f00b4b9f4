#include "ops/polyak/polyak.h"

#include "ops/optim/multi_tensor_cpu.h"

namespace fastnn::FASTNN_ISA {

namespace {

// base + weight * (s - t), where base is t or, for `from_source`, s.
template <class T, bool from_source>
void move(T* target, const T* source, int64_t n, Acc<T> weight) {
  constexpr int kStep = kLanes<Acc<T>>;
  const Vec<Acc<T>> weights = splat(weight);
  // Product and sum can be contracted in one way only, so both copies give the same bits.
  const auto moved = [&](Vec<Acc<T>> t, Vec<Acc<T>> s) { return (from_source ? s : t) + weights * (s - t); };
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) store(target + i, moved(load(target + i), load(source + i)));
  const int rest = static_cast<int>(n - i);
  if (rest > 0)
    store_partial(target + i, moved(load_partial(target + i, rest), load_partial(source + i, rest)), rest);
}

template <class T>
void update_chunk(T* target, const T* source, int64_t n, double tau) {
  const auto weight = static_cast<Acc<T>>(tau);
  if (tau == 1)
    __builtin_memmove(target, source, static_cast<size_t>(n) * sizeof(T));
  else if (tau < 0.5)
    move<T, false>(target, source, n, weight);
  else
    move<T, true>(target, source, n, weight - 1);
}

void update(OptimizerTensor* tensors, int64_t count, double tau) {
  if (tau == 0) return;
  update_tensors(tensors, count, [tau](const OptimizerTensor& t, int64_t begin, int64_t end) {
    dispatch_floating(t.dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      update_chunk(static_cast<T*>(t.param) + begin, static_cast<const T*>(t.grad) + begin, end - begin, tau);
    });
  });
}

}  // namespace

PolyakKernels polyak_kernels() { return {update}; }

}  // namespace fastnn::FASTNN_ISA
