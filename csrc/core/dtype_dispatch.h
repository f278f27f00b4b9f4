// Calls a generic lambda with a tag of the storage type that a DType names.
#pragma once

#include "core/dtype.h"

namespace fastnn::FASTNN_ISA {

template <class T>
struct TypeTag {
  using type = T;
};

// Integer types are refused before a kernel is called (core/check.h); nothing is called for them here.
template <class Body>
inline void dispatch_floating(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::f32:
      return body(TypeTag<float>{});
    case DType::f64:
      return body(TypeTag<double>{});
    case DType::bf16:
      return body(TypeTag<bfloat16>{});
    case DType::f16:
      return body(TypeTag<float16>{});
    default:
      return;
  }
}

}  // namespace fastnn::FASTNN_ISA
