// A step of an optimizer within a captured step.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <utility>
#include <vector>

namespace fastnn {

// Whether the groups of an optimizer hold these parameters, in this order, and no others.
bool has_parameters(const pybind11::object& optimizer, const pybind11::list& expected);

// Takes the step by the native rule ("adam", "sgd", "rmsprop", "adagrad"), with options and state as the
// optimizer has them now. gradients: those of its parameters that have one, in order, in the memory order of
// the parameter. False, with nothing done, if no rule covers it.
bool take_step(const std::string& rule, const pybind11::object& optimizer,
               const std::vector<std::pair<PyObject*, const void*>>& gradients,
               const pybind11::function& match_layout);

}  // namespace fastnn
