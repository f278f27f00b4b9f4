#include "dispatch/cpu_dispatch.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace fastnn {

namespace baseline {
CpuKernels kernel_table();
}
#ifdef FASTNN_X86_VARIANTS
namespace avx2 {
CpuKernels kernel_table();
}
namespace avx512 {
CpuKernels kernel_table();
}
#endif
#ifdef FASTNN_AVX512_BF16
namespace avx512_bf16 {
PairMicrokernel pair_microkernel_for(int rows, int vectors);
}
#endif

namespace {

CpuKernels table;
CpuIsa selected = CpuIsa::baseline;
bool on_pairs = false;

constexpr CpuIsa kBuilt[] = {
#ifdef FASTNN_AVX512_BF16
    CpuIsa::avx512_bf16,
#endif
#ifdef FASTNN_X86_VARIANTS
    CpuIsa::avx512,
    CpuIsa::avx2,
#endif
    CpuIsa::baseline,
};

CpuIsa choose(const char* requested) {
  const CpuIsa best = best_supported_isa();
  std::string known;
  for (CpuIsa isa : kBuilt) {
    const bool runs = isa <= best;
    if (*requested ? std::strcmp(requested, isa_name(isa)) == 0 : runs) {
      if (runs) return isa;
      throw std::invalid_argument(std::string("FASTNN_CPU_ISA=") + requested +
                                  ": this processor or operating system lacks it; the best it has is " +
                                  isa_name(best));
    }
    known += std::string(known.empty() ? "" : ", ") + isa_name(isa);
  }
  throw std::invalid_argument(std::string("FASTNN_CPU_ISA=") + requested + ": expected one of " + known);
}

}  // namespace

void select_cpu_kernels(const char* requested) {
  selected = choose(requested);
  on_pairs = selected == CpuIsa::avx512_bf16;
  switch (selected) {
#ifdef FASTNN_AVX512_BF16
    case CpuIsa::avx512_bf16:
      table = avx512::kernel_table();
      table.pair_microkernels = avx512_bf16::pair_microkernel_for;
      return;
#endif
#ifdef FASTNN_X86_VARIANTS
    case CpuIsa::avx512:
      table = avx512::kernel_table();
      return;
    case CpuIsa::avx2:
      table = avx2::kernel_table();
      return;
#endif
    default:
      table = baseline::kernel_table();
  }
}

void emulate_pairs() { on_pairs = true; }
PairMicrokernels pair_microkernels() { return on_pairs ? table.pair_microkernels : nullptr; }

const CpuKernels& cpu_kernels() { return table; }
CpuIsa selected_isa() { return selected; }

}  // namespace fastnn
