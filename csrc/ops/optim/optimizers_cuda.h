// The updates of all optimizers on CUDA: the formulas and rules of their own headers, on the current device,
// in the order of `stream`. If a tensor has a device_step, it is incremented first.
//
// If a step, a learning rate or other options are known only on the device, `memory` is device memory of
// kCommonBytes for each tensor, aligned like an allocation; else null.
#pragma once

#include <cuda_runtime_api.h>

#include "ops/adagrad/adagrad.h"
#include "ops/adam/adam.h"
#include "ops/rmsprop/rmsprop.h"
#include "ops/sgd/sgd.h"

namespace fastnn::cuda {

constexpr int64_t kCommonBytes = 80;

void adagrad_update(const AdagradTensor* tensors, int64_t count, const AdagradOptions& options,
                    const DeviceScalars& scalars, void* memory, cudaStream_t stream);
void adam_update(const AdamTensor* tensors, int64_t count, const AdamOptions& options,
                 const DeviceScalars& scalars, void* memory, cudaStream_t stream);
void rmsprop_update(const RmspropTensor* tensors, int64_t count, const RmspropOptions& options,
                    const DeviceScalars& scalars, void* memory, cudaStream_t stream);
void sgd_update(const SgdTensor* tensors, int64_t count, const SgdOptions& options,
                const DeviceScalars& scalars, void* memory, cudaStream_t stream);

}  // namespace fastnn::cuda
