#include "gemm/gemm.h"

#include <type_traits>

#include "gemm/dot_gemm.h"
#include "gemm/pair_gemm.h"
#include "gemm/swapped_gemm.h"
#include "gemm/tile_gemm.h"
#include "gemm/vector_gemm.h"

namespace fastnn::FASTNN_ISA {

template <class T>
void gemm(int64_t m, int64_t n, int64_t k, const Operand<T>& a, const Operand<T>& b,
          const Epilogue<T>& epilogue, Region region) {
  if (m == 0 || n == 0) return;
  if constexpr (std::is_same_v<T, bfloat16>)
    if (const PairMicrokernels kernels = pair_microkernels())
      return PairGemm(kernels, m, n, k, a, b, region, epilogue).run();
  if constexpr (std::is_same_v<T, Acc<T>>) {
    if (vector_form_pays(m, n, k, a, b)) return vector_gemm(m, n, k, a, b, epilogue);
    if (dot_form_pays(m, n, k, a, b, region)) return dot_gemm(m, n, k, a, b, epilogue, region);
    if (region == Region::full && swapped_form_pays(m, n, k, a, b))
      return swapped_gemm(m, n, k, a, b, epilogue);
  }
  TileGemm<T>(m, n, k, a, b, region, epilogue, n < kFewColumns).run();
}

template void gemm(int64_t, int64_t, int64_t, const Operand<float>&, const Operand<float>&,
                   const Epilogue<float>&, Region);
template void gemm(int64_t, int64_t, int64_t, const Operand<double>&, const Operand<double>&,
                   const Epilogue<double>&, Region);
template void gemm(int64_t, int64_t, int64_t, const Operand<bfloat16>&, const Operand<bfloat16>&,
                   const Epilogue<bfloat16>&, Region);
template void gemm(int64_t, int64_t, int64_t, const Operand<float16>&, const Operand<float16>&,
                   const Epilogue<float16>&, Region);

}  // namespace fastnn::FASTNN_ISA
