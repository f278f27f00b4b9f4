// Replaces csrc/core/dtype_dispatch.h: all that fastnn.h takes is float32, and kernels for the other
// types would make the module three times as large.
#pragma once

#include "core/dtype.h"

namespace fastnn::FASTNN_ISA {

template <class T>
struct TypeTag {
  using type = T;
};

template <class Body>
inline void dispatch_floating(DType, const Body& body) {
  body(TypeTag<float>{});
}

}  // namespace fastnn::FASTNN_ISA
