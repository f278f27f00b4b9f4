// Each op adds its functions to the module in a file of its own.
#pragma once

#include <pybind11/pybind11.h>

namespace fastnn::cuda {

void register_clip(pybind11::module_& m);
void register_cross_entropy(pybind11::module_& m);
void register_gram(pybind11::module_& m);
void register_epoch(pybind11::module_& m);
void register_linear(pybind11::module_& m);
void register_optimizers(pybind11::module_& m);
void register_relu(pybind11::module_& m);

}  // namespace fastnn::cuda
