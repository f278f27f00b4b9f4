// Huge pages for large results: fresh memory costs one page fault for 2 MB instead of 512.
#pragma once

#include <initializer_list>

#include "core/tensor_view.h"

namespace fastnn {

// Advises the system to use huge pages for the parts of these tensors, about to be written for the first
// time, that fill such pages. Content and size are unchanged; without huge pages nothing happens. Null
// pointers are skipped.
void prefer_huge_pages(std::initializer_list<const TensorView*> outputs);

}  // namespace fastnn
