// Softmax cross-entropy on CUDA: the formulas and rules of cross_entropy.h, on the current device, in the
// order of `stream`. The host never reads the result: everything that depends on the targets stays in
// `scratch`.
#pragma once

#include <cuda_runtime_api.h>

#include "ops/cross_entropy/cross_entropy.h"

namespace fastnn::cuda {

constexpr int kCountBlocks = 128;  // at most, that read the targets
// At most, that compute rows (a cluster is one): a few times what an H100 runs at once.
constexpr int kCrossEntropyBlocks = 2048;

// State of one call, in device memory. A later scale_gradient reads `late`.
struct CrossEntropyScratch {
  double late;                        // what the gradient must still be multiplied by
  unsigned counter;                   // of blocks that have finished
  double loss_so_far, square_so_far;  // of the chunks before
  double rows[kCountBlocks], weight[kCountBlocks];
  double loss[kCrossEntropyBlocks], square[kCrossEntropyBlocks];
};

// A class index that was out of range, reported by a kernel through memory that the host can read. Its row
// has the loss NaN and gradients of NaN.
struct BadIndex {
  enum { kTarget = 1, kRow = 2 };  // kRow: not a class, but the number of a row of the data
  long long index;
  int found;  // one of these, or 0
};
// In memory of the host that every device can write to.
BadIndex* bad_index();

// `args.totals` is not used; `args.loss` is required.
void cross_entropy_forward(const CrossEntropyArgs& args, CrossEntropyScratch* scratch, cudaStream_t stream);
// The same for the rows of `batch` in chunks, in order: with the first one the targets of the whole batch are
// counted, and a loss that is not per row is that of the chunks so far. `batch` differs from a chunk in
// `outer` and `target`.
void cross_entropy_chunk(const CrossEntropyArgs& chunk, const CrossEntropyArgs& batch, bool first,
                         CrossEntropyScratch* scratch, cudaStream_t stream);
// gradient *= scratch->late * dy, as in CrossEntropyKernels.
void cross_entropy_scale_gradient(const CrossEntropyArgs& args, const void* dy, bool scalar,
                                  const CrossEntropyScratch* scratch, cudaStream_t stream);

}  // namespace fastnn::cuda
