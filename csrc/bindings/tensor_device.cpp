#include "bindings/tensor_device.h"

#include <pybind11/pybind11.h>

namespace fastnn {

const char* const kKernelsOf = "CPU";
const bool kHasDevice = false;

bool read_device(const dlpack::Device& from, TensorView&) { return from.type == dlpack::kCpu; }

bool host_can_read(const TensorView&) { return true; }

// OpenMP keeps a thread count for each thread that opens regions, and torch passes its own setting to a new
// thread only when it is first queried there.
void before_reading() {
  thread_local bool adopted = false;
  if (adopted) return;
  pybind11::module_::import("torch").attr("get_num_threads")();
  adopted = true;
}

}  // namespace fastnn
