// Operands whose memory is not in the order of their values: copied to or from a block of a register.
#pragma once

#include "core/tensor_view.h"
#include "program/elementwise/micro_op.h"

namespace fastnn::FASTNN_ISA {

namespace {

// Calls use(done, offset, length) for each run along the last dimension of the values [begin, begin + count),
// counted as in a contiguous tensor: the first is `offset` elements into x, after `done` others.
template <class Use>
void each_run(const TensorView& x, int64_t begin, int64_t count, const Use& use) {
  const int last = x.ndim - 1;
  int64_t index[TensorView::kMaxDims], offset = 0, rest = begin;
  for (int d = last; d >= 0; --d) {
    const int64_t before = d ? rest / x.shape[d] : 0;
    index[d] = rest - before * x.shape[d];
    offset += index[d] * x.strides[d];
    rest = before;
  }
  for (int64_t done = 0; done < count;) {
    const int64_t length = min(x.shape[last] - index[last], count - done);
    use(done, offset, length);
    done += length;
    offset -= index[last] * x.strides[last];
    index[last] = 0;
    for (int d = last - 1; d >= 0; --d) {
      if (++index[d] < x.shape[d]) {
        offset += x.strides[d];
        break;
      }
      offset -= (x.shape[d] - 1) * x.strides[d];
      index[d] = 0;
    }
  }
}

// One row for all, with fewer values than a block: it is stored once and then copied in growing pieces.
template <class E>
void repeat_row(E* to, const E* row, int64_t length, int64_t begin, int64_t count) {
  const int64_t first = begin % length, period = min(length, count);
  for (int64_t i = 0; i < period; ++i) to[i] = row[first + i < length ? first + i : first + i - length];
  for (int64_t done = period; done < count;) {
    const int64_t piece = min(done / period * period, count - done);
    __builtin_memcpy(to + done, to, static_cast<size_t>(piece) * sizeof(E));
    done += piece;
  }
}

// One value per row, for rows shorter than a vector: each is written as a whole vector, which the next one's
// overlaps. Registers have room for one vector after their last value.
template <class E>
void spread_column(E* to, const E* column, int64_t stride, int64_t length, int64_t begin, int64_t count) {
  constexpr int L = kVectorBytes / static_cast<int>(sizeof(E));
  int64_t row = begin / length, at = row * length - begin;
  const E* from = column + row * stride;
  for (; at < count; at += length, from += stride) {
    if (at < 0) {
      for (int64_t i = 0; i < min(at + length, count); ++i) to[i] = *from;
    } else {
      write<E, L>(reinterpret_cast<char*>(to + at), Lanes<E, L>{} + *from);
    }
  }
}

constexpr int64_t kShortRun = 8;

// `rows` rows of N values, from one pitch to another.
template <int N, class E>
void copy_rows(E* to, int64_t to_pitch, const E* from, int64_t from_pitch, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r)
    __builtin_memcpy(to + r * to_pitch, from + r * from_pitch, N * sizeof(E));
}

template <class E>
void copy_short_rows(E* to, int64_t to_pitch, const E* from, int64_t from_pitch, int64_t length,
                     int64_t rows) {
  switch (length) {
    case 2:
      return copy_rows<2>(to, to_pitch, from, from_pitch, rows);
    case 3:
      return copy_rows<3>(to, to_pitch, from, from_pitch, rows);
    case 4:
      return copy_rows<4>(to, to_pitch, from, from_pitch, rows);
    case 5:
      return copy_rows<5>(to, to_pitch, from, from_pitch, rows);
    case 6:
      return copy_rows<6>(to, to_pitch, from, from_pitch, rows);
    case 7:
      return copy_rows<7>(to, to_pitch, from, from_pitch, rows);
    default:
      return copy_rows<8>(to, to_pitch, from, from_pitch, rows);
  }
}

// Calls part(done, row, column, rows, length) for the pieces of the values [begin, begin + count) of a
// matrix: the rest of the first row, whole rows, the beginning of the last.
template <class Part>
void each_part(int64_t width, int64_t begin, int64_t count, const Part& part) {
  int64_t row = begin / width, done = 0;
  if (const int64_t column = begin - row * width) {
    done = min(width - column, count);
    part(int64_t{0}, row, column, int64_t{1}, done);
    ++row;
  }
  const int64_t rows = (count - done) / width;
  if (rows) part(done, row, int64_t{0}, rows, width);
  done += rows * width;
  if (done < count) part(done, row + rows, int64_t{0}, int64_t{1}, count - done);
}

inline bool has_short_rows(const TensorView& x) {
  return x.ndim == 2 && x.strides[1] == 1 &&
         x.shape[1] <= kShortRun;  // and 2 or more, or it would have one dimension
}

template <class E>
void gather(E* to, const TensorView& x, int64_t begin, int64_t count) {
  const E* const data = x.as<const E>();
  const int last = x.ndim - 1;
  const int64_t stride = x.strides[last];
  if (last == 1 && stride == 1 && x.strides[0] == 0) return repeat_row(to, data, x.shape[last], begin, count);
  if (last == 1 && stride == 0 && x.shape[last] * static_cast<int64_t>(sizeof(E)) <= kVectorBytes)
    return spread_column(to, data, x.strides[0], x.shape[last], begin, count);
  if (has_short_rows(x)) {
    const int64_t pitch = x.strides[0];
    return each_part(x.shape[1], begin, count,
                     [&](int64_t done, int64_t row, int64_t column, int64_t rows, int64_t length) {
                       const E* const from = data + row * pitch + column;
                       if (rows > 1)
                         copy_short_rows(to + done, length, from, pitch, length, rows);
                       else
                         for (int64_t i = 0; i < length; ++i) to[done + i] = from[i];
                     });
  }
  each_run(x, begin, count, [&](int64_t done, int64_t offset, int64_t length) {
    E* const run = to + done;
    const E* const from = data + offset;
    if (stride == 0) {
      const E value = *from;
      for (int64_t i = 0; i < length; ++i) run[i] = value;
    } else if (stride == 1) {
      for (int64_t i = 0; i < length; ++i) run[i] = from[i];
    } else {
      for (int64_t i = 0; i < length; ++i) run[i] = from[i * stride];
    }
  });
}

template <class E>
void scatter(const E* from, const TensorView& y, int64_t begin, int64_t count) {
  E* const data = y.as<E>();
  if (has_short_rows(y)) {
    const int64_t pitch = y.strides[0];
    return each_part(y.shape[1], begin, count,
                     [&](int64_t done, int64_t row, int64_t column, int64_t rows, int64_t length) {
                       E* const to = data + row * pitch + column;
                       if (rows > 1)
                         copy_short_rows(to, pitch, from + done, length, length, rows);
                       else
                         for (int64_t i = 0; i < length; ++i) to[i] = from[done + i];
                     });
  }
  const int64_t stride = y.strides[y.ndim - 1];
  each_run(y, begin, count, [&](int64_t done, int64_t offset, int64_t length) {
    const E* const run = from + done;
    E* const to = data + offset;
    for (int64_t i = 0; i < length; ++i) to[i * stride] = run[i];
  });
}

// Values are moved by their size, never interpreted.
inline void gather_values(char* to, const TensorView& x, int64_t begin, int64_t count) {
  switch (dtype_size(x.dtype)) {
    case 1:
      return gather(reinterpret_cast<uint8_t*>(to), x, begin, count);
    case 4:
      return gather(reinterpret_cast<uint32_t*>(to), x, begin, count);
    default:
      return gather(reinterpret_cast<uint64_t*>(to), x, begin, count);
  }
}

inline void scatter_values(const char* from, const TensorView& y, int64_t begin, int64_t count) {
  switch (dtype_size(y.dtype)) {
    case 1:
      return scatter(reinterpret_cast<const uint8_t*>(from), y, begin, count);
    case 4:
      return scatter(reinterpret_cast<const uint32_t*>(from), y, begin, count);
    default:
      return scatter(reinterpret_cast<const uint64_t*>(from), y, begin, count);
  }
}

template <class E>
void repeat_value(char* slot, const char* value) {
  E values[kSlotBytes / sizeof(E)], one;
  __builtin_memcpy(&one, value, sizeof(one));
  for (E& v : values) v = one;
  __builtin_memcpy(slot, values, sizeof(values));
}

// Fills a slot of one value.
inline void repeat_bytes(char* slot, const char* value, int64_t size) {
  switch (size) {
    case 1:
      return repeat_value<uint8_t>(slot, value);
    case 4:
      return repeat_value<uint32_t>(slot, value);
    default:
      return repeat_value<uint64_t>(slot, value);
  }
}

}  // namespace

}  // namespace fastnn::FASTNN_ISA
