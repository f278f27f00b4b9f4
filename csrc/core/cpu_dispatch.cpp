#include "core/cpu_dispatch.h"

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

namespace {

CpuKernels table;
CpuIsa selected = CpuIsa::baseline;

#ifdef FASTNN_X86_VARIANTS
constexpr CpuIsa kBuilt[] = {CpuIsa::avx512, CpuIsa::avx2, CpuIsa::baseline};
#else
constexpr CpuIsa kBuilt[] = {CpuIsa::baseline};
#endif

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
  switch (selected) {
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

const CpuKernels& cpu_kernels() { return table; }
CpuIsa selected_isa() { return selected; }

}  // namespace fastnn
