// The error for a class index that is out of range, with torch's message.
#pragma once

#include <stdexcept>

#include "core/check.h"
#include "ops/cross_entropy/cross_entropy.h"

namespace fastnn {

inline std::out_of_range target_out_of_bounds(const CrossEntropyArgs& args, int64_t row) {
  const int64_t index = args.target_dtype == DType::u8
                            ? int64_t{static_cast<const uint8_t*>(args.target)[row]}
                            : static_cast<const int64_t*>(args.target)[row];
  return std::out_of_range(concat("Target ", index, " is out of bounds."));
}

}  // namespace fastnn
