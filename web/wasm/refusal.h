// The text of fastnn_message().
#pragma once

#include "fastnn.h"

namespace fastnn {

// Puts a text together, cut off where it grows too long.
class Refusal {
 public:
  explicit Refusal(const char* op);
  Refusal& operator<<(const char* text);
  Refusal& operator<<(int32_t number);
};

// refuse(kInvalid, "linear", "m is ", m) is the status, and leaves "linear: m is -1".
template <class... Parts>
Status refuse(Status status, const char* op, const Parts&... parts) {
  Refusal text(op);
  (text << ... << parts);
  return status;
}

}  // namespace fastnn
