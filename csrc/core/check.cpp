#include "core/check.h"

namespace fastnn {

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "float32";
    case DType::f64:
      return "float64";
    case DType::bf16:
      return "bfloat16";
    case DType::f16:
      return "float16";
    case DType::u8:
      return "uint8";
    case DType::i64:
      return "int64";
    case DType::b8:
      return "bool";
  }
  return "?";
}

std::ostream& operator<<(std::ostream& out, const ShapeText& shape) {
  const TensorView& t = shape.t;
  out << '(';
  for (int d = 0; d < t.ndim; ++d) out << (d ? ", " : "") << t.shape[d];
  return out << (t.ndim == 1 ? ",)" : ")");
}

void check_dtype(const char* op, const char* name, const TensorView& t, DType expected) {
  check(t.dtype == expected, op, ": ", name, " has dtype ", dtype_name(t.dtype), ", expected ",
        dtype_name(expected));
}

void check_floating(const char* op, const char* name, const TensorView& t) {
  check(is_floating(t.dtype), op, ": ", name, " has dtype ", dtype_name(t.dtype),
        ", expected a floating-point type");
}

void check_ndim(const char* op, const char* name, const TensorView& t, int ndim) {
  check(t.ndim == ndim, op, ": ", name, " has shape ", shape_string(t), ", expected ", ndim,
        ndim == 1 ? " dimension" : " dimensions");
}

void check_same_shape(const char* op, const char* name, const TensorView& t, const TensorView& like) {
  bool same = t.ndim == like.ndim;
  for (int d = 0; same && d < t.ndim; ++d) same = t.shape[d] == like.shape[d];
  check(same, op, ": ", name, " has shape ", shape_string(t), ", expected ", shape_string(like));
}

void check_matrix(const char* op, const char* name, const TensorView& t, DType dtype, int64_t rows,
                  int64_t columns) {
  check_ndim(op, name, t, 2);
  check_dtype(op, name, t, dtype);
  check(t.shape[0] == rows && t.shape[1] == columns, op, ": ", name, " has shape ", shape_string(t),
        ", expected (", rows, ", ", columns, ")");
}

void check_vector(const char* op, const char* name, const TensorView& t, DType dtype, int64_t length) {
  check_dtype(op, name, t, dtype);
  check(t.ndim == 1 && t.shape[0] == length, op, ": ", name, " has shape ", shape_string(t), ", expected (",
        length, ",)");
}

void check_contiguous(const char* op, const char* name, const TensorView& t) {
  check(t.is_contiguous(), op, ": ", name, " must be contiguous");
}

}  // namespace fastnn
