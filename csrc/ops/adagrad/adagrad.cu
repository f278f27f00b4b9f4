#include "ops/adagrad/adagrad_update.h"
#include "ops/optim/multi_tensor.cuh"
#include "ops/optim/optimizers_cuda.h"

namespace fastnn::cuda {

namespace {

constexpr const char* kOp = "adagrad";

template <class S>
struct AdagradRule {
  static constexpr int kStates = 1;
  struct Given {
    AdagradOptions options;
    double step;  // if counted on the host
  };
  using Common = AdagradConstants<S>;

  FASTNN_HOST_DEVICE static Common common(const Given& given, const DeviceScalars& scalars,
                                          const float* step) {
    AdagradOptions options = given.options;
    options.lr = read_lr(scalars, options.lr);
    return adagrad_constants<S>(options, step ? double{*step} : given.step);
  }
  __device__ __forceinline__ static void update(S& p, S g, S* state, const Common& c) {
    fastnn::cuda::adagrad_update(p, g, state[0], c);
  }
};

}  // namespace

void adagrad_update(const AdagradTensor* tensors, int64_t count, const AdagradOptions& options,
                    const DeviceScalars& scalars, void* memory, cudaStream_t stream) {
  char* left = static_cast<char*>(memory);
  const auto alike = [](const AdagradTensor& a, const AdagradTensor& b) { return a.step == b.step; };
  for_each_alike(tensors, count, alike, [&](const auto& set, const AdagradTensor& t) {
    dispatch_floating(t.dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      launch_update<T, AdagradRule<Acc<T>>>(kOp, set, {options, t.step}, scalars, left, stream);
    });
  });
}

}  // namespace fastnn::cuda
