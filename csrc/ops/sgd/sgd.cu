#include "ops/optim/multi_tensor.cuh"
#include "ops/optim/optimizers_cuda.h"
#include "ops/sgd/sgd_update.h"

namespace fastnn::cuda {

namespace {

constexpr const char* kOp = "sgd";

template <class S, SgdBuffer kBuffer>
struct SgdRule {
  static constexpr int kStates = kBuffer == SgdBuffer::none ? 0 : 1;
  using Given = SgdOptions;
  using Common = SgdConstants<S>;

  FASTNN_HOST_DEVICE static Common common(const Given& given, const DeviceScalars& scalars, const float*) {
    SgdOptions options = given;
    if (const double* numbers = scalars.numbers) {
      options.lr = numbers[0];
      options.momentum = numbers[1];
      options.dampening = numbers[2];
      options.l2 = numbers[3];
    }
    options.lr = read_lr(scalars, options.lr);
    return sgd_constants<S>(options);
  }
  __device__ __forceinline__ static void update(S& p, S g, S* state, const Common& c) {
    fastnn::cuda::sgd_update<kBuffer>(p, g, state[0], c);
  }
};

}  // namespace

void sgd_update(const SgdTensor* tensors, int64_t count, const SgdOptions& options,
                const DeviceScalars& scalars, void* memory, cudaStream_t stream) {
  char* left = static_cast<char*>(memory);
  const auto alike = [](const SgdTensor& a, const SgdTensor& b) { return a.first == b.first; };
  for_each_alike(tensors, count, alike, [&](const auto& set, const SgdTensor& t) {
    dispatch_floating(t.dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      using S = Acc<T>;
      if (options.momentum == 0)
        launch_update<T, SgdRule<S, SgdBuffer::none>>(kOp, set, options, scalars, left, stream);
      else if (t.first)
        launch_update<T, SgdRule<S, SgdBuffer::first>>(kOp, set, options, scalars, left, stream);
      else
        launch_update<T, SgdRule<S, SgdBuffer::running>>(kOp, set, options, scalars, left, stream);
    });
  });
}

}  // namespace fastnn::cuda
