// Compiled without architecture flags: it must run on every processor.
#include "core/cpu_features.h"

#include <unistd.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace fastnn {

const char* isa_name(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::avx512_bf16:
      return "avx512_bf16";
    case CpuIsa::avx512:
      return "avx512";
    case CpuIsa::avx2:
      return "avx2";
    case CpuIsa::baseline:
      break;
  }
#if defined(__x86_64__)
  return "sse2";
#elif defined(__aarch64__)
  return "neon";
#else
  return "generic";
#endif
}

#if defined(__x86_64__)

namespace {

constexpr bool has(uint32_t reg, int bit) { return (reg >> bit) & 1; }

// XCR0: the register state that the operating system saves on a context switch. An instruction set that the
// processor has but the system does not save would corrupt registers (or fault), so both are checked.
uint64_t read_xcr0() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

}  // namespace

CpuIsa best_supported_isa() {
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return CpuIsa::baseline;
  const bool fma = has(c, 12), osxsave = has(c, 27), avx = has(c, 28), f16c = has(c, 29);
  if (!(fma && osxsave && avx && f16c)) return CpuIsa::baseline;
  const uint64_t xcr0 = read_xcr0();
  constexpr uint64_t kYmmState = 0x06, kZmmState = 0xe6;  // Intel SDM vol. 1, 13.3
  if ((xcr0 & kYmmState) != kYmmState) return CpuIsa::baseline;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !has(b, 5)) return CpuIsa::baseline;
  const bool avx512 = has(b, 16) && has(b, 17) && has(b, 30) && has(b, 31);  // F, DQ, BW, VL
  if (!avx512 || (xcr0 & kZmmState) != kZmmState) return CpuIsa::avx2;
  const bool bf16 = a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && has(a, 5);  // a: the last subleaf
  return bf16 ? CpuIsa::avx512_bf16 : CpuIsa::avx512;
}

bool is_intel() {
  uint32_t most, b, c, d;
  return __get_cpuid(0, &most, &b, &c, &d) && b == signature_INTEL_ebx && c == signature_INTEL_ecx &&
         d == signature_INTEL_edx;
}

#else

CpuIsa best_supported_isa() { return CpuIsa::baseline; }
bool is_intel() { return false; }

#endif

int64_t l2_bytes() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const int64_t bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  return bytes > 0 ? bytes : 0;
#else
  return 0;
#endif
}

}  // namespace fastnn
