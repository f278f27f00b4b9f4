// Memory moved and filled.
#include "core/parallel.h"
#include "core/transpose.h"
#include "program/instruction.h"
#include "program/nest.h"

namespace fastnn::FASTNN_ISA {

namespace {

// Values that are worth a second thread.
constexpr int64_t kCopyGrain = 32768;

template <class T>
void copy_rows(T* y, const T* x, const Nest<2>& nest) {
  const int64_t ys = nest.inner_step(0), xs = nest.inner_step(1);
  parallel_for(nest.numel(), kCopyGrain, [&](int64_t begin, int64_t end) {
    for_rows(nest, begin, end, [&](const Offsets<2>& at, int64_t n) {
      if (ys == 1 && xs == 1)
        copy_row<T>(y + at.of[0], x + at.of[1], n, 1, 1);
      else
        copy_row<T>(y + at.of[0], x + at.of[1], n, ys, xs);
    });
  });
}

// The loop in which x is contiguous, unless it is the innermost one, in which y is; otherwise -1.
int transposed_loop(const Nest<2>& nest) {
  const int last = nest.dims - 1;
  if (last < 1 || nest.step[last].of[0] != 1 || nest.step[last].of[1] == 1) return -1;
  for (int d = 0; d < last; ++d)
    if (nest.step[d].of[1] == 1) return d;
  return -1;
}

// y[i][j] = x[j][i] in squares that are transposed in registers, for i in a strip of one square's height.
template <class T>
void copy_strip(T* y, const T* x, int64_t height, int64_t width, int64_t ys, int64_t xs) {
  constexpr int64_t kSide = kLanes<T>;
  int64_t j = 0;
  if (height == kSide)
    for (; j + kSide <= width; j += kSide) {
      Vec<T> rows[kSide];
      load_transposed(x + j * xs, xs, rows);
      for (int64_t i = 0; i < kSide; ++i) store(y + i * ys + j, rows[i]);
    }
  for (; j < width; ++j)
    for (int64_t i = 0; i < height; ++i) y[i * ys + j] = x[j * xs + i];
}

template <class T>
void copy_transposed(T* y, const T* x, const Nest<2>& nest, int across) {
  constexpr int64_t kSide = kLanes<T>;
  const int last = nest.dims - 1;
  const int64_t length = nest.size[across], width = nest.size[last];
  const int64_t strips = (length + kSide - 1) / kSide;
  Nest<2> outer;
  for (int d = 0; d < last; ++d)
    if (d != across) outer.add(nest.size[d], nest.step[d]);
  const int64_t ys = nest.step[across].of[0], xs = nest.step[last].of[1];
  outer.add(strips, {{kSide * ys, kSide}});
  const int64_t grain = kCopyGrain / (kSide * width) + 1;
  const int64_t y_step = outer.inner_step(0), x_step = outer.inner_step(1);
  parallel_for(outer.numel(), grain, [&](int64_t begin, int64_t end) {
    int64_t strip = begin % strips;
    for_rows(outer, begin, end, [&](const Offsets<2>& at, int64_t n) {
      for (int64_t k = 0; k < n; ++k) {
        const int64_t rest = length - strip * kSide;
        copy_strip<T>(y + at.of[0] + k * y_step, x + at.of[1] + k * x_step, rest < kSide ? rest : kSide,
                      width, ys, xs);
        if (++strip == strips) strip = 0;
      }
    });
  });
}

void copy_nest(char* y, const char* x, DType dtype, const Nest<2>& nest) {
  if (nest.numel() == 0) return;
  dispatch_size(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* const to = reinterpret_cast<T*>(y);
    const T* const from = reinterpret_cast<const T*>(x);
    if constexpr (sizeof(T) >= 4) {
      const int across = transposed_loop(nest);
      if (across >= 0) return copy_transposed<T>(to, from, nest, across);
    }
    copy_rows<T>(to, from, nest);
  });
}

// y = x, of one shape and of dtypes of one size, any strides.
void copy(const Instruction& i) {
  const TensorView &y = i.operands[0], &x = i.operands[1];
  copy_nest(y.as<char>(), x.as<const char>(), y.dtype, nest_of<2>({&y, &x}));
}

// y = x backwards in the dimensions whose bits are set in code[0].
void flip(const Instruction& i) {
  const TensorView& y = i.operands[0];
  TensorView x = i.operands[1];
  int64_t first = 0;
  for (int d = 0; d < x.ndim; ++d)
    if (i.code[0] >> d & 1 && x.shape[d] > 1) {
      first += (x.shape[d] - 1) * x.strides[d];
      x.strides[d] = -x.strides[d];
    }
  if (y.numel() == 0) first = 0;
  copy_nest(y.as<char>(), x.as<const char>() + first * dtype_size(x.dtype), y.dtype, nest_of<2>({&y, &x}));
}

template <class T>
void fill_with(const TensorView& y, T value) {
  const Nest<1> nest = nest_of<1>({&y});
  T* const to = y.as<T>();
  const int64_t ys = nest.inner_step(0);
  parallel_for(nest.numel(), kCopyGrain, [&](int64_t begin, int64_t end) {
    for_rows(nest, begin, end, [&](const Offsets<1>& at, int64_t n) {
      T* const row = to + at.of[0];
      if (ys == 1)
        for (int64_t k = 0; k < n; ++k) row[k] = value;
      else
        for (int64_t k = 0; k < n; ++k) row[k * ys] = value;
    });
  });
}

// y = numbers[0], any strides; of dtype float32, float64, int64 or bool.
void fill(const Instruction& i) {
  const TensorView& y = i.operands[0];
  const double value = i.numbers[0];
  if (y.dtype == DType::f32) return fill_with<float>(y, static_cast<float>(value));
  if (y.dtype == DType::f64) return fill_with<double>(y, value);
  if (y.dtype == DType::i64) return fill_with<int64_t>(y, static_cast<int64_t>(value));
  fill_with<uint8_t>(y, value != 0);
}

template <class T>
void count_up(const TensorView& y, double start, double step) {
  T* const to = y.as<T>();
  parallel_for(y.numel(), kCopyGrain, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) to[k] = static_cast<T>(start + step * static_cast<double>(k));
  });
}

// y[k] = numbers[0] + k numbers[1], contiguous; of dtype float32, float64 or int64.
void arange(const Instruction& i) {
  const TensorView& y = i.operands[0];
  if (y.dtype == DType::f32) return count_up<float>(y, i.numbers[0], i.numbers[1]);
  if (y.dtype == DType::f64) return count_up<double>(y, i.numbers[0], i.numbers[1]);
  count_up<int64_t>(y, i.numbers[0], i.numbers[1]);
}

// y = x where column - row is at most code[0], or, if code[1] is set, at least; 0 elsewhere. Rows and columns
// are the last two dimensions.
void triangle(const Instruction& i) {
  const TensorView &y = i.operands[0], &x = i.operands[1];
  const int64_t diagonal = i.code[0];
  const bool upper = i.code[1];
  const int64_t columns = y.shape[y.ndim - 1], rows = y.shape[y.ndim - 2];
  const int64_t ys = y.strides[y.ndim - 1], xs = x.strides[y.ndim - 1];
  if (y.numel() == 0) return;
  // The loops over columns and rows are kept separate from the others.
  Nest<2> nest;
  for (int d = 0; d < y.ndim - 2; ++d) nest.add(y.shape[d], {{y.strides[d], x.strides[d]}});
  const int64_t matrices = nest.numel();
  dispatch_size(y.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(matrices, kCopyGrain / (rows * columns) + 1, [&](int64_t begin, int64_t end) {
      for_rows(nest, begin, end, [&](const Offsets<2>& at, int64_t n) {
        for (int64_t k = 0; k < n * rows; ++k) {
          const int64_t matrix = k / rows, row = k % rows;
          T* const to = y.as<T>() + at.of[0] + matrix * nest.inner_step(0) + row * y.strides[y.ndim - 2];
          const T* const from =
              x.as<const T>() + at.of[1] + matrix * nest.inner_step(1) + row * x.strides[y.ndim - 2];
          // The first column beyond what a lower triangle keeps, or of what an upper one does.
          int64_t edge = row + diagonal + (upper ? 0 : 1);
          edge = edge < 0 ? 0 : edge > columns ? columns : edge;
          for (int64_t c = 0; c < edge; ++c) to[c * ys] = upper ? T(0) : from[c * xs];
          for (int64_t c = edge; c < columns; ++c) to[c * ys] = upper ? from[c * xs] : T(0);
        }
      });
    });
  });
}

constexpr NamedInstruction kInstructions[] = {
    {"copy", copy}, {"flip", flip}, {"fill", fill}, {"arange", arange}, {"triangle", triangle}};

}  // namespace

InstructionFamily copy_instructions() {
  return {kInstructions, sizeof(kInstructions) / sizeof(*kInstructions)};
}

}  // namespace fastnn::FASTNN_ISA
