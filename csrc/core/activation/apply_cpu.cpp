#include "core/activation/apply.h"

#include "core/activation/activation_vec.h"

namespace fastnn::FASTNN_ISA {

namespace {

// x = change(x, offset, lanes) for vectors of `count` values. Whole vectors and the remainder share one copy
// of the arithmetic, which the compiler might otherwise contract in two ways.
template <class A, class Change>
FASTNN_INLINE void each_vector(A* x, int64_t count, const Change& change) {
  for (int64_t k = 0; k < count; k += kLanes<A>) {
    const int lanes = static_cast<int>(count - k < kLanes<A> ? count - k : kLanes<A>);
    store_lanes(x + k, change(load_lanes(x + k, lanes), k, lanes), lanes);
  }
}

}  // namespace

template <class A>
void apply_activation(Activation activation, A* z, int64_t count) {
  dispatch_activation(activation, [&](auto tag) {
    constexpr Activation kA = decltype(tag)::value;
    if constexpr (kA != Activation::none)
      each_vector(z, count,
                  [](Vec<A> v, int64_t, int) __attribute__((always_inline)) { return activate<kA>(v); });
  });
}

template <class A>
void apply_gradient(Activation activation, A* dy, const A* saved, int64_t count) {
  dispatch_activation(activation, [&](auto tag) {
    constexpr Activation kA = decltype(tag)::value;
    if constexpr (kA != Activation::none)
      each_vector(dy, count, [saved](Vec<A> v, int64_t k, int lanes) __attribute__((always_inline)) {
        return activation_gradient<kA>(v, load_lanes(saved + k, lanes));
      });
  });
}

template void apply_activation(Activation, float*, int64_t);
template void apply_activation(Activation, double*, int64_t);
template void apply_gradient(Activation, float*, const float*, int64_t);
template void apply_gradient(Activation, double*, const double*, int64_t);

}  // namespace fastnn::FASTNN_ISA
