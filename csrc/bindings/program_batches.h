// Many calls of a captured step, each on other rows of a data set.
#pragma once

#include <pybind11/pybind11.h>

#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "core/tensor_view.h"

namespace fastnn {

constexpr const char* kProgram = "program";  // what errors name

// Calls `run` for each batch of `rows` (steps * size), of which losses (steps,) gets what the calls return,
// until all are taken, a row is out of range, or `run` returns NotImplemented; returns how many were taken.
// gathered: the tensors that `run` is called with, each (size, ...) and contiguous, and the data (N, ...),
// with contiguous rows, that it gets its rows of. rates (steps,): the learning rate of each step, which the
// groups of the optimizer have then and keep.
int64_t run_batches(const std::function<pybind11::object()>& run,
                    const std::vector<std::pair<TensorView, TensorView>>& gathered, const TensorView& rows,
                    const TensorView& losses, const pybind11::list& groups,
                    const std::optional<TensorView>& rates);

}  // namespace fastnn
