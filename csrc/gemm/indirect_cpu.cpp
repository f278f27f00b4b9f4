#include "gemm/indirect.h"

#include "gemm/gemm.h"

namespace fastnn::FASTNN_ISA {

template <class T>
void indirect_gemm(int64_t m, int64_t n, int64_t k, const Operand<T>& a, const Operand<T>& b,
                   const Indirect<T>& epilogue) {
  gemm<T>(m, n, k, a, b, epilogue);
}

template void indirect_gemm<float>(int64_t, int64_t, int64_t, const Operand<float>&, const Operand<float>&,
                                   const Indirect<float>&);
template void indirect_gemm<double>(int64_t, int64_t, int64_t, const Operand<double>&, const Operand<double>&,
                                    const Indirect<double>&);
template void indirect_gemm<bfloat16>(int64_t, int64_t, int64_t, const Operand<bfloat16>&,
                                      const Operand<bfloat16>&, const Indirect<bfloat16>&);
template void indirect_gemm<float16>(int64_t, int64_t, int64_t, const Operand<float16>&,
                                     const Operand<float16>&, const Indirect<float16>&);

}  // namespace fastnn::FASTNN_ISA
