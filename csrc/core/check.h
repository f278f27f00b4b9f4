// Argument checks whose message names the op, the expectation and what was given.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

#include "core/tensor_view.h"

namespace fastnn {

// Prints the shape, "(3, 4)". The text is made only when streamed, so a passing check does not pay for it.
struct ShapeText {
  const TensorView& t;
};
inline ShapeText shape_string(const TensorView& t) { return {t}; }
std::ostream& operator<<(std::ostream& out, const ShapeText& shape);

template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// std::runtime_error becomes RuntimeError in Python, std::out_of_range IndexError, std::invalid_argument
// ValueError.
template <class Error = std::runtime_error, class... Parts>
void check(bool condition, const Parts&... message) {
  if (!condition) throw Error(concat(message...));
}

void check_dtype(const char* op, const char* name, const TensorView& t, DType expected);
void check_floating(const char* op, const char* name, const TensorView& t);
void check_ndim(const char* op, const char* name, const TensorView& t, int ndim);
void check_same_shape(const char* op, const char* name, const TensorView& t, const TensorView& like);
void check_matrix(const char* op, const char* name, const TensorView& t, DType dtype, int64_t rows,
                  int64_t columns);
void check_vector(const char* op, const char* name, const TensorView& t, DType dtype, int64_t length);
void check_contiguous(const char* op, const char* name, const TensorView& t);

}  // namespace fastnn
