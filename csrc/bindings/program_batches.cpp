#include "bindings/program_batches.h"

#include <cstring>

#include "bindings/optimizer_group.h"
#include "core/check.h"

namespace py = pybind11;

namespace fastnn {

namespace {

// Copies rows of a data set to a batch, if all are in range.
bool gather(const TensorView& batch, const TensorView& data, const int64_t* rows) {
  const int64_t size = batch.shape[0];
  for (int64_t i = 0; i < size; ++i)
    if (rows[i] < 0 || rows[i] >= data.shape[0]) return false;
  if (batch.numel() == 0) return true;
  const int64_t bytes = batch.numel() / size * dtype_size(batch.dtype);
  const int64_t stride = data.strides[0] * dtype_size(data.dtype);
  for (int64_t i = 0; i < size; ++i)
    std::memcpy(batch.as<char>() + i * bytes, data.as<const char>() + rows[i] * stride,
                static_cast<size_t>(bytes));
  return true;
}

void check_gathered(const TensorView& batch, const TensorView& data, int64_t size) {
  bool fits = batch.is_contiguous() && batch.dtype == data.dtype && batch.ndim == data.ndim &&
              batch.ndim > 0 && batch.shape[0] == size;
  int64_t stride = 1;
  for (int d = batch.ndim - 1; fits && d > 0; --d) {
    fits = batch.shape[d] == data.shape[d] && (data.shape[d] == 1 || data.strides[d] == stride);
    stride *= data.shape[d];
  }
  check(fits, kProgram, ": a batch has shape ", shape_string(batch), ", its data ", shape_string(data));
}

}  // namespace

int64_t run_batches(const std::function<py::object()>& run,
                    const std::vector<std::pair<TensorView, TensorView>>& gathered, const TensorView& rows,
                    const TensorView& losses, const py::list& groups,
                    const std::optional<TensorView>& rates) {
  static Interned lr("lr");
  const int64_t steps = losses.numel();
  check_dtype(kProgram, "rows", rows, DType::i64);
  check(steps > 0 && losses.is_contiguous() && rows.is_contiguous() && rows.numel() % steps == 0, kProgram,
        ": rows has shape ", shape_string(rows), ", losses ", shape_string(losses));
  const int64_t size = rows.numel() / steps;
  for (const auto& [batch, data] : gathered) check_gathered(batch, data, size);
  if (rates) {
    check_vector(kProgram, "rates", *rates, DType::f64, steps);
    check_contiguous(kProgram, "rates", *rates);
  }
  for (int64_t step = 0; step < steps; ++step) {
    for (const auto& [batch, data] : gathered)
      if (!gather(batch, data, rows.as<const int64_t>() + step * size)) return step;
    if (rates)
      for (const py::handle group : groups) group.cast<py::dict>()[lr] = rates->as<const double>()[step];
    const py::object result = run();
    if (result.ptr() == Py_NotImplemented) return step;
    const TensorView loss = read_plain(result.ptr());
    check(loss.numel() == 1 && loss.dtype == losses.dtype, kProgram, ": the loss has shape ",
          shape_string(loss));
    const auto width = static_cast<size_t>(dtype_size(loss.dtype));
    std::memcpy(losses.as<char>() + static_cast<size_t>(step) * width, loss.data, width);
  }
  return steps;
}

}  // namespace fastnn
