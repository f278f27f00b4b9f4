// The instruction sets that this processor and this operating system support, its maker, and its cache.
#pragma once

#include <cstdint>

namespace fastnn {

// In ascending order: each includes those before it.
enum class CpuIsa { baseline, avx2, avx512, avx512_bf16 };

const char* isa_name(CpuIsa isa);
CpuIsa best_supported_isa();

// Whether Intel made the processor: MKL, torch's products, uses slower code paths on others.
bool is_intel();

// Bytes of a core's second-level cache, 0 if unknown.
int64_t l2_bytes();

}  // namespace fastnn
