// Many calls of a captured step, each on different rows of a data set.
#pragma once

#include <pybind11/pybind11.h>

#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "core/tensor_view.h"

namespace fastnn {

constexpr const char* kProgram = "program";  // the name in errors

// Calls `run` for each batch of `rows` (steps * size), storing the results in losses (steps,), until all are
// taken, a row is out of range, or `run` returns NotImplemented; returns how many were taken. gathered: the
// tensors with which `run` is called, each (size, ...) and contiguous, and the data (N, ...), with contiguous
// rows, from which their rows are copied. rates (steps,): the learning rate of each step, which is stored in
// the optimizer's groups.
int64_t run_batches(const std::function<pybind11::object()>& run,
                    const std::vector<std::pair<TensorView, TensorView>>& gathered, const TensorView& rows,
                    const TensorView& losses, const pybind11::list& groups,
                    const std::optional<TensorView>& rates);

}  // namespace fastnn
