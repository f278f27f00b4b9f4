#include "ops/adam/adam_scales.h"
#include "ops/adam/adam_update.h"
#include "ops/optim/multi_tensor.cuh"
#include "ops/optim/optimizers_cuda.h"

namespace fastnn::cuda {

namespace {

constexpr const char* kOp = "adam";

template <class S, bool kAmsgrad>
struct AdamRule {
  static constexpr int kStates = kAmsgrad ? 3 : 2;
  struct Given {
    AdamOptions options;
    double step, step_size, denom_scale;  // if lr and step are on the host
  };
  using Common = AdamConstants<S>;

  FASTNN_HOST_DEVICE static Common common(const Given& given, const DeviceScalars& scalars,
                                          const float* step) {
    if (!scalars.lr && !scalars.numbers && !step)
      return adam_constants<S>(given.options, given.step_size, given.denom_scale);
    AdamOptions options = given.options;
    if (const double* numbers = scalars.numbers) {
      options.lr = numbers[0];
      options.beta1 = numbers[1];
      options.beta2 = numbers[2];
      options.eps = numbers[3];
      options.weight_decay = numbers[4];
    }
    options.lr = read_lr(scalars, options.lr);
    const AdamScales scales = adam_scales(options, step ? double{*step} : given.step);
    return adam_constants<S>(options, scales.step_size, scales.denom_scale);
  }
  __device__ __forceinline__ static void update(S& p, S g, S* state, const Common& c) {
    fastnn::cuda::adam_update<kAmsgrad>(p, g, state[0], state[1], state[2], c);
  }
};

}  // namespace

void adam_update(const AdamTensor* tensors, int64_t count, const AdamOptions& options,
                 const DeviceScalars& scalars, void* memory, cudaStream_t stream) {
  char* left = static_cast<char*>(memory);
  const auto alike = [](const AdamTensor& a, const AdamTensor& b) { return a.step == b.step; };
  for_each_alike(tensors, count, alike, [&](const auto& set, const AdamTensor& t) {
    dispatch_floating(t.dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      using S = Acc<T>;
      const double step = t.step, size = t.step_size, scale = t.denom_scale;
      if (options.amsgrad)
        launch_update<T, AdamRule<S, true>>(kOp, set, {options, step, size, scale}, scalars, left, stream);
      else
        launch_update<T, AdamRule<S, false>>(kOp, set, {options, step, size, scale}, scalars, left, stream);
    });
  });
}

}  // namespace fastnn::cuda
