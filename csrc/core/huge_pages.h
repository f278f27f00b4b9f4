// Huge pages behind large memory: a fresh result costs one page fault for 2 MB in the place of 512, and
// kernels that walk along a stride miss the TLB less often.
#pragma once

#include <cstddef>
#include <initializer_list>

#include "core/tensor_view.h"

namespace fastnn {

constexpr size_t kHugePage = size_t{2} << 20;

// Advises the system to back the whole huge pages within these bytes with such. Content and size stay as they
// are; where the system has no huge pages nothing happens.
void prefer_huge_pages(void* data, size_t bytes);

// The same for tensors that are about to be written for the first time; null pointers are skipped.
void prefer_huge_pages(std::initializer_list<const TensorView*> outputs);

}  // namespace fastnn
