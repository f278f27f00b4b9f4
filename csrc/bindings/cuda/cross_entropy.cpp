#include <pybind11/stl.h>

#include <atomic>
#include <optional>

#include "bindings/cross_entropy_args.h"
#include "bindings/cuda/bad_index.h"
#include "bindings/cuda/cuda_call.h"
#include "bindings/cuda/registration.h"
#include "ops/cross_entropy/cross_entropy_cuda.h"

namespace fastnn::cuda {

namespace {

constexpr int64_t kScratchDoubles = sizeof(CrossEntropyScratch) / sizeof(double);

bool is_captured(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(stream, &status), cross_entropy_args::kOp);
  return status != cudaStreamCaptureStatusNone;
}

CrossEntropyScratch* read_scratch(const TensorView& scratch) {
  check_vector(cross_entropy_args::kOp, "scratch", scratch, DType::f64, kScratchDoubles);
  check_contiguous(cross_entropy_args::kOp, "scratch", scratch);
  return scratch.as<CrossEntropyScratch>();
}

void forward(const TensorView& x, const TensorView& target, const std::optional<TensorView>& weight,
             const TensorView& loss, const std::optional<TensorView>& gradient, int64_t ignore_index,
             int reduction, double label_smoothing, double z_loss, const TensorView& scratch,
             bool check_at_once) {
  const CrossEntropyArgs args = cross_entropy_args::read_forward(
      x, target, pointer(weight), loss, pointer(gradient), ignore_index, reduction, label_smoothing, z_loss);
  CrossEntropyScratch* memory = read_scratch(scratch);
  const CudaCall call(cross_entropy_args::kOp,
                      {&x, &target, pointer(weight), &loss, pointer(gradient), &scratch});
  raise_bad_index();
  cross_entropy_forward(args, memory, call.stream());
  if (check_at_once) raise_bad_index_of(call.stream());
}

void scale_gradient(const TensorView& gradient, const TensorView& dy, const TensorView& scratch) {
  CrossEntropyArgs args = {};
  const bool scalar = cross_entropy_args::read_scaling(gradient, dy, args);
  const CrossEntropyScratch* memory = read_scratch(scratch);
  const CudaCall call(cross_entropy_args::kOp, {&gradient, &dy, &scratch});
  cross_entropy_scale_gradient(args, dy.data, scalar, memory, call.stream());
}

}  // namespace

void raise_bad_index() {
  volatile BadIndex* bad = bad_index();
  const int found = bad->found;
  if (!found) return;
  std::atomic_thread_fence(std::memory_order_acquire);
  const int64_t index = bad->index;
  bad->found = 0;
  if (found == BadIndex::kTarget) throw std::out_of_range(concat("Target ", index, " is out of bounds."));
  throw std::out_of_range(concat("index ", index, " is out of range of the data"));
}

void raise_bad_index_of(cudaStream_t stream) {
  if (is_captured(stream)) return;
  check_cuda(cudaStreamSynchronize(stream), cross_entropy_args::kOp);
  raise_bad_index();
}

void register_cross_entropy(pybind11::module_& m) {
  m.attr("cross_entropy_scratch") = kScratchDoubles;  // elements of float64 that a call takes
  m.def("cross_entropy_forward", &forward);
  m.def("cross_entropy_scale_gradient", &scale_gradient);
}

}  // namespace fastnn::cuda
