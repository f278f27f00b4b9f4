// The matrix product with an epilogue that only a pointer names: compiled once for all of them. Beside the
// arithmetic of an exponential the call is small, and the whole product for each activation would take a
// megabyte of code in all.
#pragma once

#include "gemm/operand.h"

namespace fastnn::FASTNN_ISA {

// An epilogue as in gemm.h that passes each row segment on.
template <class T>
struct Indirect {
  const void* epilogue;
  void (*store)(const void* epilogue, int64_t i, int64_t j, Vec<Acc<T>> v, int lanes);

  Acc<T>* direct(int64_t, int64_t) const { return nullptr; }
  FASTNN_INLINE void operator()(int64_t i, int64_t j, Vec<Acc<T>> v, int lanes) const {
    store(epilogue, i, j, v, lanes);
  }
};

// gemm() with it, for the four storage types.
template <class T>
void indirect_gemm(int64_t m, int64_t n, int64_t k, const Operand<T>& a, const Operand<T>& b,
                   const Indirect<T>& epilogue);

namespace detail {

template <class T, class Epilogue>
void call(const void* epilogue, int64_t i, int64_t j, Vec<Acc<T>> v, int lanes) {
  (*static_cast<const Epilogue*>(epilogue))(i, j, v, lanes);
}

}  // namespace detail

// The pointer to an epilogue, which must outlive it.
template <class T, class Epilogue>
Indirect<T> indirect(const Epilogue& epilogue) {
  return {&epilogue, detail::call<T, Epilogue>};
}

}  // namespace fastnn::FASTNN_ISA
