#include "core/dtype_dispatch.h"
#include "core/parallel.h"
#include "gemm/gemm.h"
#include "gemm/threads.h"
#include "ops/linear/linear.h"
#include "program/instruction.h"
#include "program/product_epilogue.h"

namespace fastnn::FASTNN_ISA {

namespace {

// Which optional operands are present, in their order after the mandatory ones.
enum Parts : int64_t { kAddend = 1, kSaved = 2, kKeepsZ = 4 };

// One product of matrices. The operands are views of (M, N), but a (M, K) and b (K, N).
struct Product {
  TensorView c, z, a, b, d, saved;
  int64_t parts;
  double alpha, beta;
  Activation activation;

  bool has(Parts part) const { return parts & part; }
};

TensorView turned(TensorView t) {
  const int64_t rows = t.shape[0], stride = t.strides[0];
  t.shape[0] = t.shape[1], t.shape[1] = rows;
  t.strides[0] = t.strides[1], t.strides[1] = stride;
  return t;
}

// C^T = B^T A^T.
Product turned(const Product& p) {
  return {turned(p.c),     turned(p.z), turned(p.b), turned(p.a), turned(p.d),
          turned(p.saved), p.parts,     p.alpha,     p.beta,      p.activation};
}

// Rows are written as vectors, so those of C should be contiguous; a single column, which is both, is
// better treated as one row. (The stride of an addend is then that row's.)
bool turning_pays(const TensorView& c) {
  return c.shape[1] == 1 ? c.shape[0] != 1 : !c.is_contiguous() && c.strides[0] == 1;
}

template <class T>
Operand<T> operand(const TensorView& t) {
  return {t.as<const T>(), t.strides[0], t.strides[1]};
}
template <class T>
Target<T> target(const TensorView& t) {
  return {t.as<T>(), t.strides[0], t.strides[1]};
}

template <class T, bool kGradient>
void with_epilogue(const Product& p) {
  const ProductEpilogue<T, kGradient> epilogue{target<T>(p.c),
                                               p.has(kKeepsZ) ? target<T>(p.z) : Target<T>{},
                                               p.has(kAddend) ? operand<T>(p.d) : Operand<T>{},
                                               kGradient ? operand<T>(p.saved) : Operand<T>{},
                                               static_cast<T>(p.alpha),
                                               static_cast<T>(p.beta),
                                               p.activation};
  gemm<T>(p.c.shape[0], p.c.shape[1], p.a.shape[1], operand<T>(p.a), operand<T>(p.b),
          activated_epilogue<T>(epilogue));
}

template <class T>
void general(const Product& p) {
  if (p.has(kSaved))
    with_epilogue<T, true>(p);
  else
    with_epilogue<T, false>(p);
}

// The kernels of the linear layer, which write C directly, do the work of most layers of a network; false if
// they do not cover it.
bool as_layer(const Product& p) {
  if (p.alpha != 1 || !p.c.is_contiguous()) return false;
  if (p.has(kSaved)) {
    if (p.has(kAddend) || p.has(kKeepsZ)) return false;
    linear_kernels().backward(
        {p.a, nullptr, Activation::none, nullptr, &p.b, &p.saved, p.activation, &p.c, nullptr, nullptr});
    return true;
  }
  if (p.has(kAddend) && (p.beta != 1 || p.d.strides[0] != 0)) return false;
  if (p.has(kKeepsZ) && !(from_preactivation(p.activation) && p.z.is_contiguous())) return false;
  TensorView bias;
  if (p.has(kAddend)) {
    bias.data = p.d.data, bias.dtype = p.d.dtype, bias.ndim = 1;
    bias.shape[0] = p.d.shape[1], bias.strides[0] = p.d.strides[1];
  }
  linear_kernels().forward(p.a, turned(p.b), p.has(kAddend) ? &bias : nullptr, p.activation, p.c,
                           p.has(kKeepsZ) ? &p.z : nullptr);
  return true;
}

void multiply_as_it_lies(const Product& p) {
  if (as_layer(p)) return;
  if (p.c.dtype == DType::f32)
    general<float>(p);
  else
    general<double>(p);
}

void multiply(const Product& p) {
  if (turning_pays(p.c))
    multiply_as_it_lies(turned(p));
  else
    multiply_as_it_lies(p);
}

// The first matrix of a batch of them, or the only one.
TensorView first_matrix(const TensorView& t) {
  if (t.ndim == 2) return t;
  TensorView first;
  first.data = t.data, first.dtype = t.dtype, first.ndim = 2;
  for (int d = 0; d < 2; ++d) first.shape[d] = t.shape[d + 1], first.strides[d] = t.strides[d + 1];
  return first;
}

// Calls visit(operand of the instruction, the product's) for those that are present.
template <class Visit>
void each_operand(const Instruction& i, Product& p, const Visit& visit) {
  const TensorView* next = i.operands;
  visit(*next++, p.c);
  if (p.has(kKeepsZ)) visit(*next++, p.z);
  visit(*next++, p.a);
  visit(*next++, p.b);
  if (p.has(kAddend)) visit(*next++, p.d);
  if (p.has(kSaved)) visit(*next++, p.saved);
}

void advance(const Instruction& i, Product& p, int64_t products) {
  each_operand(i, p, [&](const TensorView& whole, TensorView& matrix) {
    matrix.data = matrix.as<char>() + products * whole.strides[0] * dtype_size(whole.dtype);
  });
}

// product: c, [z] = a, b, [d], [saved]; numbers alpha, beta; code activation, parts
//   z = alpha a b + beta d     c = act(z), or with `saved` act'(saved) z
// a (M, K), b (K, N), all others (M, N), of one floating-point type, any strides; or all of them with a batch
// in front. `saved` is what linear.h says; d is not read unless `parts` includes it. The results overlap no
// input, except that d or saved may be exactly the view c.
void product(const Instruction& i) {
  const TensorView& c = i.operands[0];
  if (c.numel() == 0) return;
  Product first;
  first.activation = static_cast<Activation>(i.code[0]);
  first.parts = i.code[1];
  first.alpha = i.numbers[0], first.beta = i.numbers[1];
  each_operand(i, first, [](const TensorView& whole, TensorView& matrix) { matrix = first_matrix(whole); });
  if (c.ndim == 2) return multiply(first);
  // Each product by one thread if there are enough of them: its threads would synchronise after each.
  const int64_t batch = c.shape[0], work = c.shape[1] * c.shape[2] * first.a.shape[1];
  const auto some = [&](int64_t begin, int64_t end) {
    Product p = first;
    advance(i, p, begin);
    for (int64_t index = begin; index < end; ++index, advance(i, p, 1)) multiply(p);
  };
  if (batch < max_threads() && work >= 2 * kGemmGrain)
    some(0, batch);
  else
    parallel_for(batch, ceil_div(kGemmGrain, work + 1), some);
}

constexpr NamedInstruction kInstructions[] = {{"product", product}};

}  // namespace

InstructionFamily product_instructions() {
  return {kInstructions, sizeof(kInstructions) / sizeof(*kInstructions)};
}

}  // namespace fastnn::FASTNN_ISA
