// Reductions over any dimensions of a tensor.
#pragma once

#include "core/parallel.h"
#include "program/elementwise/gather.h"
#include "program/instruction.h"
#include "program/reduce/reducers.h"

namespace fastnn::FASTNN_ISA {

namespace {

constexpr int64_t kReduceGrain = 32768;  // values that are worth a second thread
constexpr int64_t kShortRow = 16;
constexpr int64_t kSumRows = 32;  // rows whose vectors are added up before they are added to a total
constexpr int kColumnVectors = 4;

// x with the kept dimensions first, then the reduced ones, which y lacks.
struct ReduceShape {
  explicit ReduceShape(const Instruction& i)
      : y(i.operands[0]), x(i.operands[1]), kept(static_cast<int>(i.code[0])), results(y.numel()) {
    reduced.ndim = x.ndim - kept;
    reduced.dtype = x.dtype;
    for (int d = kept; d < x.ndim; ++d) {
      reduced.shape[d - kept] = x.shape[d];
      reduced.strides[d - kept] = x.strides[d];
    }
    count = reduced.numel();
  }

  // Offset in elements in x of the values of result `i`, or in y of the result.
  int64_t offset(const TensorView& t, int64_t i) const {
    int64_t offset = 0;
    for (int d = kept - 1; d > 0; --d) {
      const int64_t before = i / y.shape[d];
      offset += (i - before * y.shape[d]) * t.strides[d];
      i = before;
    }
    return kept ? offset + i * t.strides[0] : 0;
  }

  const TensorView &y, &x;
  const int kept;
  const int64_t results;
  int64_t count = 0;  // values for each result
  TensorView reduced;
};

template <class R>
typename R::Part reduce_one(const ReduceShape& shape, const typename R::Value* x) {
  typename R::Part part = R::identity();
  if (shape.count == 0) return part;
  if (shape.reduced.ndim == 1) return R::run(x, shape.count, shape.reduced.strides[0]);
  const int64_t stride = shape.reduced.strides[shape.reduced.ndim - 1];
  each_run(shape.reduced, 0, shape.count, [&](int64_t, int64_t offset, int64_t length) {
    part = R::join(part, R::run(x + offset, length, stride));
  });
  return part;
}

// Each result separately.
template <class R>
void reduce_rows(const R& reducer, const ReduceShape& shape) {
  using T = typename R::Value;
  parallel_for(shape.results, kReduceGrain / (shape.count + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      shape.y.as<T>()[shape.offset(shape.y, i)] =
          reducer.finish(reduce_one<R>(shape, shape.x.as<const T>() + shape.offset(shape.x, i)));
  });
}

// Short rows, several at a time: each waits for its own last addition only.
template <class R>
void reduce_short_rows(const R& reducer, const ReduceShape& shape) {
  using T = typename R::Value;
  constexpr int64_t kRows = 8;
  const int64_t pitch = shape.x.strides[0], stride = shape.reduced.strides[0], to = shape.y.strides[0];
  const int64_t groups = (shape.results + kRows - 1) / kRows;
  parallel_for(groups, kReduceGrain / (kRows * shape.count) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      const T* const x = shape.x.as<const T>() + group * kRows * pitch;
      T* const y = shape.y.as<T>() + group * kRows * to;
      const int64_t rows = min(kRows, shape.results - group * kRows);
      T parts[kRows];
      if (rows == kRows) {
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) parts[r] = x[r * pitch];
        for (int64_t k = 1; k < shape.count; ++k)
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) parts[r] = R::add(parts[r], x[r * pitch + k * stride]);
      } else {
        for (int64_t r = 0; r < rows; ++r) {
          parts[r] = x[r * pitch];
          for (int64_t k = 1; k < shape.count; ++k) parts[r] = R::add(parts[r], x[r * pitch + k * stride]);
        }
      }
      for (int64_t r = 0; r < rows; ++r) y[r * to] = reducer.finish_few(parts[r]);
    }
  });
}

// U vectors of neighbouring results, or one of `lanes` of them.
template <class R, int U>
void reduce_vectors(const R& reducer, const ReduceShape& shape, const typename R::Value* x,
                    typename R::Value* y, int lanes) {
  using T = typename R::Value;
  using V = typename R::Vector;
  constexpr int L = kLanesOf<T>;
  const int64_t stride = shape.reduced.strides[shape.reduced.ndim - 1];
  const auto row = [&](const T* from, int u) {
    const char* const p = reinterpret_cast<const char*>(from + u * L);
    return U > 1 || lanes == L ? read<T, L>(p) : read_some<T, L>(p, lanes);
  };
  V totals[U];
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) totals[u] = R::none();
  each_run(shape.reduced, 0, shape.count, [&](int64_t, int64_t offset, int64_t length) {
    for (int64_t block = 0; block < length; block += kSumRows) {
      const int64_t end = min(block + kSumRows, length);
      // Two rows at a time: each waits for its own last addition only.
      V even[U], odd[U];
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) even[u] = odd[u] = R::none();
      int64_t k = block;
      for (; k + 2 <= end; k += 2) {
        const T* const from = x + offset + k * stride;
#pragma GCC unroll 4
        for (int u = 0; u < U; ++u) {
          even[u] = R::add(even[u], row(from, u));
          odd[u] = R::add(odd[u], row(from + stride, u));
        }
      }
      if (k < end)
#pragma GCC unroll 4
        for (int u = 0; u < U; ++u) even[u] = R::add(even[u], row(x + offset + k * stride, u));
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) totals[u] = R::add(totals[u], R::add(even[u], odd[u]));
    }
  });
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) {
    char* const to = reinterpret_cast<char*>(y + u * L);
    const V value = reducer.finish(totals[u]);
    if (U > 1 || lanes == L)
      write<T, L>(to, value);
    else
      write_some<T, L>(to, value, lanes);
  }
}

// Results whose values are adjacent: vectors of them.
template <class R>
void reduce_columns(const R& reducer, const ReduceShape& shape) {
  using T = typename R::Value;
  constexpr int64_t kL = kLanesOf<T>, kChunk = kColumnVectors * kL;
  const int64_t inner = shape.y.shape[shape.kept - 1], chunks = (inner + kChunk - 1) / kChunk;
  parallel_for(shape.results / inner * chunks, kReduceGrain / (shape.count * min(inner, kChunk) + 1) + 1,
               [&](int64_t begin, int64_t end) {
                 for (int64_t task = begin; task < end; ++task) {
                   const int64_t outer = task / chunks, column = (task - outer * chunks) * kChunk;
                   const T* const x = shape.x.as<const T>() + shape.offset(shape.x, outer * inner) + column;
                   T* const y = shape.y.as<T>() + shape.offset(shape.y, outer * inner) + column;
                   const int64_t width = min(kChunk, inner - column);
                   if (width == kChunk) {
                     reduce_vectors<R, kColumnVectors>(reducer, shape, x, y, kL);
                     continue;
                   }
                   for (int64_t j = 0; j < width; j += kL)
                     reduce_vectors<R, 1>(reducer, shape, x + j, y + j, static_cast<int>(min(kL, width - j)));
                 }
               });
}

// Rows with fewer values than a vector, adjacent in memory: as many vectors as a row has values hold a whole
// number of rows.
template <class R>
void reduce_narrow_columns(const R& reducer, const ReduceShape& shape) {
  using T = typename R::Value;
  using V = typename R::Vector;
  constexpr int L = kLanesOf<T>;
  const int64_t width = shape.y.shape[0];
  parallel_for(1, 1, [&](int64_t, int64_t) {
    typename R::Part parts[L];
    for (int64_t j = 0; j < width; ++j) parts[j] = R::identity();
    const T* x = shape.x.as<const T>();
    int64_t rows = shape.count;
    while (rows >= L) {
      V sums[L];
      for (int64_t u = 0; u < width; ++u) sums[u] = R::none();
      for (int step = 0; step < kSumRows && rows >= L; ++step, rows -= L, x += width * L)
        for (int64_t u = 0; u < width; ++u)
          sums[u] = R::add(sums[u], read<T, L>(reinterpret_cast<const char*>(x + u * L)));
      T lanes[L * L];
      for (int64_t u = 0; u < width; ++u) write<T, L>(reinterpret_cast<char*>(lanes + u * L), sums[u]);
      for (int64_t i = 0; i < L; ++i)
        for (int64_t j = 0; j < width; ++j) parts[j] = R::join(parts[j], lanes[i * width + j]);
    }
    for (; rows > 0; --rows, x += width)
      for (int64_t j = 0; j < width; ++j) parts[j] = R::join(parts[j], x[j]);
    for (int64_t j = 0; j < width; ++j) shape.y.as<T>()[j * shape.y.strides[0]] = reducer.finish(parts[j]);
  });
}

// Integers and bools, rarely reduced, do not use the special forms for short rows.
template <class R>
void reduce(const Instruction& instruction) {
  constexpr int64_t kL = kLanesOf<typename R::Value>;
  constexpr bool kAllForms = kIsFloating<typename R::Value>;
  const ReduceShape shape(instruction);
  const R reducer(instruction.number_count ? instruction.numbers[0] : 1);
  const int kept = shape.kept;
  if (shape.results == 0) return;
  if (shape.count == 0 || kept == 0) return reduce_rows(reducer, shape);
  const bool one_run = shape.reduced.ndim == 1;
  const int64_t inner = shape.y.shape[kept - 1];
  if (shape.x.strides[kept - 1] == 1) {
    if constexpr (kAllForms)
      if (one_run && kept == 1 && inner < kL && shape.reduced.strides[0] == inner && shape.count >= kL)
        return reduce_narrow_columns(reducer, shape);
    if (shape.y.strides[kept - 1] == 1 && inner >= kL / 2) return reduce_columns(reducer, shape);
  }
  if constexpr (kAllForms)
    if (one_run && kept == 1 && shape.count <= kShortRow) return reduce_short_rows(reducer, shape);
  reduce_rows(reducer, shape);
}

}  // namespace

}  // namespace fastnn::FASTNN_ISA
