#include <pybind11/stl.h>

#include <atomic>
#include <optional>
#include <utility>

#include "bindings/cross_entropy_args.h"
#include "bindings/cuda/bad_index.h"
#include "bindings/cuda/cuda_call.h"
#include "bindings/cuda/registration.h"
#include "ops/cross_entropy/cross_entropy_cuda.h"

namespace fastnn::cuda {

namespace {

pybind11::handle bad_index_callback;  // an owned reference; called before an index error is raised

constexpr int64_t kScratchDoubles = sizeof(CrossEntropyScratch) / sizeof(double);

// Whether a stream is being captured, or is the legacy stream, which waits for others, while another one is.
bool is_captured(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t answer = cudaStreamIsCapturing(stream, &status);
  if (answer == cudaErrorStreamCaptureImplicit) {
    cudaGetLastError();  // an answer, not an error for a later check to find
    return true;
  }
  check_cuda(answer, cross_entropy_args::kOp);
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

// Elements `begin` to `begin + count` of a contiguous vector.
TensorView part_of(const TensorView& vector, int64_t begin, int64_t count) {
  TensorView part = vector;
  part.data = vector.as<char>() + begin * dtype_size(vector.dtype);
  part.shape[0] = count;
  return part;
}

// The rows of a batch from `begin` on, whose logits are x; `target` and, if each row has one, `loss` are
// those of the whole batch. Chunks come in order.
void chunk(const TensorView& x, int64_t begin, const TensorView& target,
           const std::optional<TensorView>& weight, const TensorView& loss,
           const std::optional<TensorView>& gradient, int64_t ignore_index, int reduction,
           double label_smoothing, double z_loss, const TensorView& scratch, bool check_at_once) {
  constexpr const char* kOp = cross_entropy_args::kOp;
  check_ndim(kOp, "input", x, 2);
  check_ndim(kOp, "target", target, 1);
  check_contiguous(kOp, "target", target);
  const int64_t rows = x.shape[0], all = target.shape[0];
  check(begin >= 0 && begin <= all - rows, kOp, ": ", rows, " rows from ", begin, " on of a batch of ", all);
  const bool rowwise = cross_entropy_args::read_reduction(kOp, reduction) == Reduction::none;
  if (rowwise) {
    check_vector(kOp, "loss", loss, x.dtype, all);
    check_contiguous(kOp, "loss", loss);
  }
  const CrossEntropyArgs args = cross_entropy_args::read_forward(
      x, part_of(target, begin, rows), pointer(weight), rowwise ? part_of(loss, begin, rows) : loss,
      pointer(gradient), ignore_index, reduction, label_smoothing, z_loss);
  CrossEntropyArgs batch = args;
  batch.target = target.data;
  batch.outer = all;
  CrossEntropyScratch* memory = read_scratch(scratch);
  const CudaCall call(kOp, {&x, &target, pointer(weight), &loss, pointer(gradient), &scratch});
  const bool first = begin == 0;
  if (first) raise_bad_index();
  cross_entropy_chunk(args, batch, first, memory, call.stream());
  if (first && check_at_once) raise_bad_index_of(call.stream());
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
  if (bad_index_callback) bad_index_callback();
  if (found == BadIndex::kTarget) throw std::out_of_range(concat("Target ", index, " is out of bounds."));
  throw std::out_of_range(concat("index ", index, " is out of range of the data"));
}

void raise_bad_index_of(cudaStream_t stream) {
  if (is_captured(stream)) return;
  cudaError_t status;
  {
    // Other Python threads continue: one of them may have to launch what the stream waits for.
    const pybind11::gil_scoped_release released;
    status = cudaStreamSynchronize(stream);
  }
  check_cuda(status, cross_entropy_args::kOp);
  raise_bad_index();
}

void register_cross_entropy(pybind11::module_& m) {
  m.attr("cross_entropy_scratch") = kScratchDoubles;  // elements of float64 that a call takes
  m.def("on_bad_index",
        [](pybind11::function callback) { std::exchange(bad_index_callback, callback.release()).dec_ref(); });
  m.def("raise_bad_index", [](const TensorView& on) {
    const CudaCall call("raise_bad_index", {&on});
    raise_bad_index_of(call.stream());
  });
  m.def("raise_told_bad_index", &raise_bad_index);  // without waiting for kernels that may find another
  m.def("cross_entropy_forward", &forward);
  m.def("cross_entropy_chunk", &chunk);
  m.def("cross_entropy_scale_gradient", &scale_gradient);
}

}  // namespace fastnn::cuda
