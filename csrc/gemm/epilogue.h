// What is done with the sums of a product. The product is compiled once for each storage type and calls its
// epilogue through a pointer, once per register tile: compared with a tile's products the call costs nothing.
#pragma once

#include "core/simd.h"
#include "gemm/blocking.h"

namespace fastnn::FASTNN_ISA {

// The largest `rows` of a call: a row tile's, or the lanes of the widest vector.
constexpr int64_t kMostEpilogueRows = 16;

// store(self, i, j, rows, columns, values, stride) receives the sums C (i + r, j + c) for r < rows and
// c < columns, each once, at values[r * stride + c]; whole vectors can be read of every row.
template <class T>
struct Epilogue {
  using Store = void (*)(const void* self, int64_t i, int64_t j, int64_t rows, int64_t columns,
                         const Acc<T>* values, int64_t stride);

  Acc<T>* direct;  // C (0, 0), if C is contiguous and takes the sums unchanged; else null
  const void* self;
  Store store;

  void operator()(int64_t i, int64_t j, int64_t rows, int64_t columns, const Acc<T>* values,
                  int64_t stride) const {
    store(self, i, j, rows, columns, values, stride);
  }
};

namespace detail {

template <class T, class Rows>
void store_tile(const void* self, int64_t i, int64_t j, int64_t rows, int64_t columns, const Acc<T>* values,
                int64_t stride) {
  constexpr int64_t kL = kLanes<Acc<T>>;
  const Rows to = *static_cast<const Rows*>(self);
  const int64_t whole = columns / kL * kL;
  if (columns == 1) {  // a number of lanes that the compiler knows
    for (int64_t r = 0; r < rows; ++r) to(i + r, j, load(values + r * stride), 1);
    return;
  }
  for (int64_t r = 0; r < rows; ++r, values += stride) {
    for (int64_t c = 0; c < whole; c += kL) to(i + r, j + c, load(values + c), kL);
    if (whole < columns) to(i + r, j + whole, load(values + whole), static_cast<int>(columns - whole));
  }
}

}  // namespace detail

// The epilogue made of an object that takes row segments, and which must outlive it: to(i, j, v, n) gets the
// n <= kLanes values of row i from column j on. direct() is what Epilogue says.
template <class T, class Rows>
Epilogue<T> epilogue_of(const Rows& to) {
  return {to.direct(), &to, detail::store_tile<T, Rows>};
}

}  // namespace fastnn::FASTNN_ISA
