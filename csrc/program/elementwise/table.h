// Micro-ops by number and type.
#pragma once

#include "program/elementwise/functions.h"
#include "program/elementwise/micro_op.h"
#include "program/elementwise/truth.h"

namespace fastnn::FASTNN_ISA {

namespace {

// Types of values, in the order of python/fastnn/capture/micro_ops.py, which has the numbers of the micro-ops
// as well: the order of kMicroOps.
constexpr int kTypes = 5;  // float, double, int64_t, bool, uint8_t

struct MicroRow {
  MicroKernel of_type[kTypes];
};

template <class F>
constexpr MicroRow unary_floats() {
  return {{unary<F, float, float>, unary<F, double, double>, nullptr, nullptr, nullptr}};
}
template <class F, class G = F>
constexpr MicroRow unary_numbers() {
  return {{unary<F, float, float>, unary<F, double, double>, unary<G, int64_t, int64_t>, nullptr, nullptr}};
}
template <class F>
constexpr MicroRow binary_floats() {
  return {{binary<F, float, float, float>, binary<F, double, double, double>, nullptr, nullptr, nullptr}};
}
template <class F>
constexpr MicroRow binary_numbers() {
  return {{binary<F, float, float, float>, binary<F, double, double, double>,
           binary<F, int64_t, int64_t, int64_t>, nullptr, nullptr}};
}
template <class F>
constexpr MicroRow bitwise() {
  return {{nullptr, nullptr, binary<F, int64_t, int64_t, int64_t>, binary<F, uint8_t, uint8_t, uint8_t>,
           nullptr}};
}
template <class F>
constexpr MicroRow comparison() {
  return {{binary<F, uint8_t, float, float>, binary<F, uint8_t, double, double>,
           binary<F, uint8_t, int64_t, int64_t>, binary<F, uint8_t, uint8_t, uint8_t>, nullptr}};
}
template <class F>
constexpr MicroRow ternary_floats() {
  return {{ternary<F, float, float, float, float>, ternary<F, double, double, double, double>, nullptr,
           nullptr, nullptr}};
}
template <class F, class To>
constexpr MicroRow conversion() {
  return {{unary<F, To, float>, unary<F, To, double>, unary<F, To, int64_t>, unary<F, To, uint8_t>,
           unary<F, To, uint8_t>}};
}

constexpr MicroRow kMicroOps[] = {
    // move, add, sub, mul, div, multiply_add
    {{unary<Move, float, float>, unary<Move, double, double>, unary<Move, int64_t, int64_t>,
      unary<Move, uint8_t, uint8_t>, nullptr}},
    binary_numbers<Add>(),
    binary_numbers<Sub>(),
    binary_numbers<Mul>(),
    binary_floats<Div>(),
    ternary_floats<MultiplyAdd>(),
    // neg, abs, sgn, reciprocal, sqrt, rsqrt
    unary_numbers<Neg>(),
    unary_numbers<Abs, AbsOfInteger>(),
    unary_numbers<Sgn>(),
    unary_floats<Reciprocal>(),
    unary_floats<Sqrt>(),
    unary_floats<Rsqrt>(),
    // exp, expm1, log, log1p, log2, log10
    unary_floats<Exp>(),
    unary_floats<Expm1>(),
    unary_floats<Log>(),
    unary_floats<Log1p>(),
    unary_floats<Log2>(),
    unary_floats<Log10>(),
    // sin, cos, tan, atan, erf
    unary_floats<Sin>(),
    unary_floats<Cos>(),
    unary_floats<Tan>(),
    unary_floats<Atan>(),
    unary_floats<Erf>(),
    // floor, ceil, round, trunc
    unary_floats<Floor>(),
    unary_floats<Ceil>(),
    unary_floats<Round>(),
    unary_floats<Trunc>(),
    // pow, fmod, remainder, atan2, minimum, maximum
    binary_floats<Pow>(),
    binary_floats<Fmod>(),
    binary_floats<Remainder>(),
    binary_floats<Atan2>(),
    binary_numbers<Minimum>(),
    binary_numbers<Maximum>(),
    // relu, sigmoid, tanh, gelu, gelu_tanh, silu
    unary_numbers<Relu>(),
    unary_floats<Activate<Activation::sigmoid>>(),
    unary_floats<Activate<Activation::tanh>>(),
    unary_floats<Activate<Activation::gelu>>(),
    unary_floats<Activate<Activation::gelu_tanh>>(),
    unary_floats<Activate<Activation::silu>>(),
    // gate, sigmoid_backward, tanh_backward, gelu_backward, gelu_tanh_backward, silu_backward
    ternary_floats<Gate>(),
    binary_floats<Through<Activation::sigmoid>>(),
    binary_floats<Through<Activation::tanh>>(),
    binary_floats<Through<Activation::gelu>>(),
    binary_floats<Through<Activation::gelu_tanh>>(),
    binary_floats<Through<Activation::silu>>(),
    // eq, ne, lt, le
    comparison<Eq>(),
    comparison<Ne>(),
    comparison<Lt>(),
    comparison<Le>(),
    // where
    {{ternary<Where, float, uint8_t, float, float>, ternary<Where, double, uint8_t, double, double>,
      ternary<Where, int64_t, uint8_t, int64_t, int64_t>, ternary<Where, uint8_t, uint8_t, uint8_t, uint8_t>,
      nullptr}},
    // and, or, xor
    bitwise<And>(),
    bitwise<Or>(),
    bitwise<Xor>(),
    // to_float32, to_float64, to_int64, to_bool
    conversion<Convert<float>, float>(),
    conversion<Convert<double>, double>(),
    conversion<Convert<int64_t>, int64_t>(),
    conversion<ToBool, uint8_t>(),
};

}  // namespace

}  // namespace fastnn::FASTNN_ISA
