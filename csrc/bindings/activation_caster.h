// How an activation is passed from Python: None, or its name as a str.
#pragma once

#include <cstring>

#include <pybind11/pybind11.h>

#include "core/activation/activation.h"

namespace pybind11::detail {

template <>
struct type_caster<fastnn::Activation> {
  PYBIND11_TYPE_CASTER(fastnn::Activation, const_name("str | None"));

  bool load(handle source, bool) {
    static constexpr const char* kNames[] = {"relu", "sigmoid", "tanh", "gelu", "gelu_tanh", "silu"};
    value = fastnn::Activation::none;
    if (source.is_none()) return true;
    const char* const name = PyUnicode_Check(source.ptr()) ? PyUnicode_AsUTF8(source.ptr()) : nullptr;
    if (!name) {
      PyErr_Clear();
      return false;
    }
    int position = static_cast<int>(fastnn::Activation::none);
    for (const char* known : kNames) {
      ++position;
      if (std::strcmp(name, known) == 0) {
        value = static_cast<fastnn::Activation>(position);
        return true;
      }
    }
    return false;
  }
};

}  // namespace pybind11::detail
