#include "ops/optim/multi_tensor.cuh"
#include "ops/optim/optimizers_cuda.h"
#include "ops/rmsprop/rmsprop_update.h"

namespace fastnn::cuda {

namespace {

constexpr const char* kOp = "rmsprop";

template <class S, bool kMomentum, bool kCentered>
struct RmspropRule {
  static constexpr int kStates = 1 + kMomentum + kCentered;
  using Given = RmspropOptions;
  using Common = RmspropConstants<S>;

  FASTNN_HOST_DEVICE static Common common(const Given& given, const DeviceScalars& scalars, const float*) {
    RmspropOptions options = given;
    options.lr = read_lr(scalars, options.lr);
    return rmsprop_constants<S>(options);
  }
  __device__ __forceinline__ static void update(S& p, S g, S* state, const Common& c) {
    fastnn::cuda::rmsprop_update<kMomentum, kCentered>(p, g, state[0], state[1], state[1 + kMomentum], c);
  }
};

}  // namespace

void rmsprop_update(const RmspropTensor* tensors, int64_t count, const RmspropOptions& options,
                    const DeviceScalars& scalars, void* memory, cudaStream_t stream) {
  char* left = static_cast<char*>(memory);
  const auto alike = [](const RmspropTensor&, const RmspropTensor&) { return true; };
  for_each_alike(tensors, count, alike, [&](const auto& set, const RmspropTensor& t) {
    dispatch_floating(t.dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      using S = Acc<T>;
      const bool momentum = options.momentum > 0;
      if (momentum && options.centered)
        launch_update<T, RmspropRule<S, true, true>>(kOp, set, options, scalars, left, stream);
      else if (momentum)
        launch_update<T, RmspropRule<S, true, false>>(kOp, set, options, scalars, left, stream);
      else if (options.centered)
        launch_update<T, RmspropRule<S, false, true>>(kOp, set, options, scalars, left, stream);
      else
        launch_update<T, RmspropRule<S, false, false>>(kOp, set, options, scalars, left, stream);
    });
  });
}

}  // namespace fastnn::cuda
