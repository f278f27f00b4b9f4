// An epoch of training steps in one launch, for a network with one hidden layer that fits on the chip.
//
//   x = byte * scale + shift          (batch, K), of the next images in `order`
//   h = relu(x W1^T + b1)             W1 (H, K), b1 (H)
//   z = h W2^T + b2                   W2 (C, H), b2 (C)
//   loss = mean over the rows whose label is not ignore_index of logsumexp(z) - z[label]
// and Adam's update (ops/adam/adam.h, without amsgrad) of W1, b1, W2 and b2. Everything is float32 and
// contiguous. A batch without a row that counts has the loss NaN and gradients of 0. If an entry of the order
// or the label of an image in it is out of range, nothing is updated and all losses are NaN; see
// bad_index() of ops/cross_entropy/cross_entropy_cuda.h.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "ops/adam/adam.h"

namespace fastnn::cuda {

constexpr int kEpochParameters = 4;  // W1, b1, W2, b2

struct EpochShape {
  int64_t features, hidden, classes;  // K, H, C
  int64_t batch;                      // rows of each batch except the last
};

struct EpochParameter {
  float *value, *m, *v;
  float* step;         // updates before the epoch, on the device; incremented. Or null:
  double step_before;  // the same, counted by the host, including skipped steps of earlier epochs
};

struct EpochArgs {
  EpochShape shape;
  int64_t held;           // number of images
  int64_t count;          // images that are trained on
  const uint8_t* images;  // (held, K)
  const int64_t* labels;  // (held)
  const int64_t* order;   // (count)
  float scale, shift;
  int64_t ignore_index;
  EpochParameter parameters[kEpochParameters];
  AdamOptions adam;
  const double* rates;  // (steps) the learning rate of each, or null: that of `adam`
  // How many of the steps in step_before were skipped, because an index of their epoch was out of range; if
  // one of this epoch is, its steps are added. Or null if no step_before is used.
  int64_t* not_taken;
  float* losses;  // (steps)
};

inline int64_t epoch_steps(const EpochArgs& args) {
  return (args.count + args.shape.batch - 1) / args.shape.batch;
}

// Device memory allocated by the caller, for one call: what was found in the indices, followed by the
// constants of each step's updates (AdamConstants<float> of each parameter).
constexpr size_t kEpochHead = 16, kEpochStepBytes = 160;
inline size_t epoch_scratch_bytes(int64_t steps) {
  return kEpochHead + static_cast<size_t>(steps) * kEpochStepBytes;
}

// Why the current device cannot run it, or "". `cluster` blocks share the hidden units; 0 chooses.
std::string why_no_epoch(const EpochShape& shape, int cluster);

// Throws std::runtime_error if why_no_epoch() returns a reason. `scratch` is aligned to 16 bytes.
void train_epoch(const EpochArgs& args, int cluster, void* scratch, cudaStream_t stream);

}  // namespace fastnn::cuda
