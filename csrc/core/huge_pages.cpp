#include "core/huge_pages.h"

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastnn {

namespace {

constexpr uintptr_t kHugePage = uintptr_t{2} << 20;

void advise([[maybe_unused]] uintptr_t begin, [[maybe_unused]] uintptr_t end) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage, last = end / kHugePage * kHugePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace

void prefer_huge_pages(std::initializer_list<const TensorView*> outputs) {
  for (const TensorView* t : outputs) {
    if (!t) continue;
    const auto begin = reinterpret_cast<uintptr_t>(t->data);
    advise(begin, begin + static_cast<uintptr_t>(t->numel() * dtype_size(t->dtype)));
  }
}

}  // namespace fastnn
