// Instructions that read and write a tensor at indices (indexed.h).
#include "core/parallel.h"
#include "program/indexed.h"

namespace fastnn::FASTNN_ISA {

namespace {

// Values that are worth a second thread.
constexpr int64_t kIndexGrain = 16384;

template <class T, int kIndices>
void read_typed(const Instruction& i) {
  const TensorView &y = i.operands[0], &x = i.operands[2];
  int64_t* const flag = i.operands[1].as<int64_t>();
  const Indexed<kIndices> indexed(y, x, i.operands + 3, i.code);
  const bool whole_rows = indexed.whole_rows();
  const int64_t ys = indexed.nest.inner_step(0), xs = indexed.nest.inner_step(1);
  parallel_for(indexed.nest.numel(), kIndexGrain, [&](int64_t begin, int64_t end) {
    if (begin == 0) indexed.check(flag);
    for_rows(indexed.nest, begin, end, [&](Offsets<2 + kIndices> at, int64_t n) {
      T* const to = y.as<T>() + at.of[0];
      const T* const from = x.as<const T>();
      if (whole_rows) {
        int64_t offset = at.of[1];
        if (indexed.locate(at, offset)) copy_row(to, from + offset, n, ys, xs);
        return;
      }
      for (int64_t k = 0; k < n; ++k) {
        int64_t offset = at.of[1] + k * xs;
        if (indexed.locate(at, offset)) to[k * ys] = from[offset];
        indexed.next(at);
      }
    });
  });
}

// y = x at indices. Operands: y, flag, x, index tensors; over y.
void read(const Instruction& i) {
  const TensorView& y = i.operands[0];
  if (y.numel() == 0 && leads_team()) *i.operands[1].as<int64_t>() = kAllWell;
  dispatch_size(y.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (i.code[0] == 1) return read_typed<T, 1>(i);
    if (i.code[0] == 2) return read_typed<T, 2>(i);
    read_typed<T, TensorView::kMaxDims>(i);
  });
}

// The largest dimension of `over` that is one of the indexed tensor itself: elements that differ in it never
// address the same element, so threads may share it; or -1.
int shared_dimension(const TensorView& over, const TensorView& y, const int64_t* code) {
  int best = -1;
  for (int d = 0; d < y.ndim; ++d) {
    const int64_t is = code[2 + d];
    if (is >= 0 && over.shape[is] > 1 && (best < 0 || over.shape[is] > over.shape[best]))
      best = static_cast<int>(is);
  }
  return best;
}

// write_each for elements [begin, end) of dimension `shared` of `over`, or for all.
template <class T, int kIndices, class Put>
void write_part(const Instruction& i, int64_t* flag, const TensorView& over, const TensorView* indices,
                int shared, int64_t begin, int64_t end, const Put& put) {
  const TensorView& y = i.operands[0];
  const Indexed<kIndices> indexed(over, y, indices, i.code, shared, begin, end);
  if (begin == 0 && flag) indexed.check(flag);
  const bool whole_rows = indexed.whole_rows();
  const int64_t ys = indexed.nest.inner_step(1), xs = indexed.nest.inner_step(0);
  for_rows(indexed.nest, 0, indexed.nest.numel(), [&](Offsets<2 + kIndices> at, int64_t n) {
    for (int v = 0; v < 2 + indexed.count; ++v) at.of[v] += indexed.first.of[v];
    const T* const from = over.as<const T>() + at.of[0];
    T* const to = y.as<T>();
    if (whole_rows) {
      int64_t offset = at.of[1];
      if (indexed.locate(at, offset)) put(to + offset, from, n, ys, xs, at.of[2]);
      return;
    }
    for (int64_t k = 0; k < n; ++k) {
      int64_t offset = at.of[1] + k * ys;
      if (indexed.locate(at, offset)) put(to + offset, from + k * xs, int64_t{1}, ys, xs, at.of[2]);
      indexed.next(at);
    }
  });
}

// Calls put(position in y, source, n, step in y, step in the source, first index) for runs of elements of
// `over`, in the order of its elements if several have the same target. kOneIndex: there is one index
// tensor.
template <class T, bool kOneIndex = false, class Put>
void write_each(const Instruction& i, int64_t* flag, const TensorView& over, const TensorView* indices,
                const Put& put) {
  const int64_t size = over.numel();
  if (size == 0) {
    if (flag && leads_team()) *flag = kAllWell;
    return;
  }
  const bool worth_sharing = size >= 2 * kIndexGrain && max_threads() > 1;
  const int shared = worth_sharing ? shared_dimension(over, i.operands[0], i.code) : -1;
  const int64_t parts = shared < 0 ? 1 : over.shape[shared];
  parallel_for(parts, kIndexGrain * parts / size + 1, [&](int64_t begin, int64_t end) {
    if constexpr (kOneIndex)
      write_part<T, 1>(i, flag, over, indices, shared, begin, end, put);
    else if (i.code[0] == 1)
      write_part<T, 1>(i, flag, over, indices, shared, begin, end, put);
    else if (i.code[0] == 2)
      write_part<T, 2>(i, flag, over, indices, shared, begin, end, put);
    else
      write_part<T, TensorView::kMaxDims>(i, flag, over, indices, shared, begin, end, put);
  });
}

// y = source at indices, the rest of y unchanged; of several with the same target the last one wins.
// Operands: y, flag, source, index tensors; over the source.
void write(const Instruction& i) {
  dispatch_size(i.operands[0].dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    write_each<T>(i, i.operands[1].as<int64_t>(), i.operands[2], i.operands + 3,
                  [](T* to, const T* from, int64_t n, int64_t ys, int64_t xs, int64_t) {
                    copy_row(to, from, n, ys, xs);
                  });
  });
}

template <class T>
void add_row(T* y, const T* x, int64_t n, int64_t ys, int64_t xs, T alpha) {
  int64_t k = 0;
  if constexpr (sizeof(T) == sizeof(Acc<T>))
    if (ys == 1 && xs == 1)
      for (; k + kLanes<T> <= n; k += kLanes<T>) store(y + k, load(y + k) + alpha * load(x + k));
  for (; k < n; ++k) y[k * ys] += alpha * x[k * xs];
}

template <class T>
void add_typed(const Instruction& i) {
  const T alpha = static_cast<T>(i.numbers[0]);
  write_each<T>(i, i.operands[1].as<int64_t>(), i.operands[2], i.operands + 3,
                [alpha](T* to, const T* from, int64_t n, int64_t ys, int64_t xs, int64_t) {
                  add_row(to, from, n, ys, xs, alpha);
                });
}

// y += numbers[0] source at indices, in order if several have the same target. Operands: y, flag,
// source, index tensors; over the source. Of float32, float64 or int64.
void add(const Instruction& i) {
  const DType dtype = i.operands[0].dtype;
  if (dtype == DType::f32) return add_typed<float>(i);
  if (dtype == DType::f64) return add_typed<double>(i);
  add_typed<int64_t>(i);
}

// y += source at one index tensor, except where the index is the last number of the code; indices out of
// range are skipped. Operands: y, source, index tensor; over the source. Of float32 or float64.
void embedding_add(const Instruction& i) {
  const int64_t padding = i.code[i.code_count - 1];
  const int64_t* const index = i.operands[2].as<const int64_t>();
  const auto run = [&](auto tag) {
    using T = decltype(tag);
    write_each<T, true>(i, nullptr, i.operands[1], i.operands + 2,
                        [=](T* to, const T* from, int64_t n, int64_t ys, int64_t xs, int64_t at) {
                          if (index[at] != padding) add_row(to, from, n, ys, xs, T(1));
                        });
  };
  if (i.operands[0].dtype == DType::f64) return run(double{});
  run(float{});
}

constexpr NamedInstruction kInstructions[] = {
    {"gather", read},
    {"index", read},
    {"index_select", read},
    {"embedding", read},
    {"scatter", write},
    {"index_put", write},
    {"index_copy", write},
    {"scatter_add", add},
    {"index_put_add", add},
    {"index_add", add},
    {"embedding_add", embedding_add},
};

}  // namespace

InstructionFamily indexing_instructions() {
  return {kInstructions, sizeof(kInstructions) / sizeof(*kInstructions)};
}

}  // namespace fastnn::FASTNN_ISA
