// Which instruction sets this processor and this operating system support.
#pragma once

namespace fastnn {

enum class CpuIsa { baseline, avx2, avx512 };

const char* isa_name(CpuIsa isa);
CpuIsa best_supported_isa();

}  // namespace fastnn
