// A cluster of blocks takes all steps of an epoch. Weights and Adam's state stay in shared memory, each block
// having some of the hidden units; a step's images are read once by each block, and the only exchange between
// blocks are batch x classes logits and their gradient.
//
// Predicted, not measured, for 784-128-10 at batch 64 on 16 blocks of 8 units, in clock cycles of one
// multiprocessor (four schedulers, each of which issues one instruction of a warp a cycle):
//   hidden layer  8 tiles x 7 rounds of 4 features a lane x (256 FMA + 96 for bytes to floats + 16 loads + 6)
//                 = 20.9 k instructions, 8 x 62 x 4 of the sum over lanes = 2 k          /4  5.7 k cycles
//   gradient, W1  7 warps x 64 rows x (32 FMA + 12 for bytes to floats + 3 loads + 1)    two warps on a
//                 scheduler: 2 x 64 x 48                                                     6.1 k
//   update, W1    2 warps on a scheduler x 32 values x about 25                              1.6 k
//   the rest      logits, loss, W2: latencies                                                about 2 k
//   two barriers of the cluster and the logits through distributed shared memory             about 1.5 k
// 17 k cycles are 10 us at 1.7 GHz. The images, 50 KB a step and block, come from L2 at the same time.
// Half of all cycles are FMAs: to reduce them, use the tensor cores, where bytes are exact as bfloat16.
#include <stdexcept>

#include "ops/adam/adam_scales.h"
#include "ops/cross_entropy/cross_entropy_cuda.h"
#include "ops/epoch/phases.cuh"
#include "ops/epoch/update.cuh"

namespace fastnn::cuda {

namespace {

constexpr const char* kOp = "train_epoch";
constexpr int kPrepareThreads = 256;
constexpr int kMostClasses = kWarp;                                                // a lane each
constexpr int64_t kMostFeatures = 1 << 16, kMostHidden = 1024, kMostBatch = 1024;  // offsets fit 32 bits
constexpr int kFewestUnits = kTile;  // of a block, below which tiles are not full

// Checks all indices before anything is updated, and computes the constants of all steps.
__global__ void __launch_bounds__(kPrepareThreads)
    prepare_epoch(const __grid_constant__ EpochLaunch p, BadIndex* bad) {
  const EpochArgs& args = p.args;
  const int64_t first = int64_t{blockIdx.x} * kPrepareThreads + threadIdx.x;
  const int64_t all = int64_t{gridDim.x} * kPrepareThreads;
  for (int64_t i = first; i < args.count; i += all) {
    const int64_t row = args.order[i];
    const bool bad_row = row < 0 || row >= args.held;
    const int64_t label = bad_row ? 0 : args.labels[row];
    if (!bad_row && (label == args.ignore_index || (label >= 0 && label < args.shape.classes))) continue;
    bad->index = bad_row ? row : label;
    __threadfence_system();
    *static_cast<volatile int*>(&bad->found) = bad_row ? BadIndex::kRow : BadIndex::kTarget;
    *p.bad = 1;
  }
  for (int64_t i = first; i < int64_t{p.steps} * kEpochParameters; i += all) {
    const int64_t step = i / kEpochParameters;
    const int parameter = static_cast<int>(i % kEpochParameters);
    const EpochParameter& of = args.parameters[parameter];
    const double before = of.step          ? double{*of.step}
                          : args.not_taken ? of.step_before - static_cast<double>(*args.not_taken)
                                           : of.step_before;
    AdamOptions adam = args.adam;
    if (args.rates) adam.lr = args.rates[step];
    const AdamScales scales = adam_scales(adam, before + static_cast<double>(step) + 1);
    p.constants[step][parameter] = adam_constants<float>(adam, scales.step_size, scales.denom_scale);
  }
}

__global__ void __launch_bounds__(kEpochThreads, 1) train_steps(const __grid_constant__ EpochLaunch p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900  // clusters; the host requires such a device
  const EpochBlock block(p);
  if (*p.bad) {
    if (block.rank != 0) return;
    for (int i = threadIdx.x; i < p.steps; i += kEpochThreads) p.args.losses[i] = NAN;
    if (threadIdx.x == 0 && p.args.not_taken) *p.args.not_taken += p.steps;
    return;
  }
  load_parameters(block);
  look_up_rows(block, 0);
  ptx::commit_copies();
  ptx::wait_copies<0>();
  __syncthreads();
  fetch_batch(block, 0);
  look_up_rows(block, 1);

  for (int step = 0; step < p.steps; ++step) {
    ptx::commit_copies();
    ptx::wait_copies<0>();
    __syncthreads();  // this step's batch has arrived, and the weights have been updated
    if (p.layout.buffers == 2) fetch_batch(block, step + 1);
    look_up_rows(block, step + 2);
    compute_hidden(block, step);
    __syncthreads();  // the hidden layer is complete
    compute_partial_logits(block, step);
    // All blocks' partial logits are complete; and the previous step's gradient of the logits and its losses,
    // which are about to be overwritten, are no longer used.
    ptx::cluster_sync();
    compute_loss(block, step);
    // The gradient of all logits has arrived from all blocks; and this block's partial logits, which the next
    // step overwrites, are no longer read. No memory of another block is accessed after this, so blocks may
    // exit after the last step.
    ptx::cluster_sync();
    compute_hidden_gradient(block, step);
    __syncthreads();  // before W2 changes, and W1 is updated with that gradient
    if (block.rank == 0 && threadIdx.x / kWarp == kEpochWarps - 1) store_loss(block, step);
    update_parameters(block, step);
    if (p.layout.buffers == 1) {
      __syncthreads();  // the images have been used
      fetch_batch(block, step + 1);
    }
  }
  __syncthreads();
  store_parameters(block);
  if (block.rank == 0 && threadIdx.x < kEpochParameters) {
    float* step = p.args.parameters[threadIdx.x].step;
    if (step) *step += static_cast<float>(p.steps);
  }
#endif
}

void allow_large_clusters() {
  allow_shared_memory<train_steps>(kOp);
  check_cuda(cudaFuncSetAttribute(train_steps, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), kOp);
}

// Whether the device has room for all blocks of such a cluster at once.
bool can_run(const EpochLayout& layout) {
  if (layout.total > device_limits().shared_bytes) return false;
  allow_large_clusters();
  return most_clusters(train_steps, static_cast<unsigned>(layout.cluster), kEpochThreads,
                       static_cast<size_t>(layout.total)) > 0;
}

// Preferably two batches on chip rather than one, then as many blocks as have whole tiles of units. Its
// `cluster` is 0 if nothing fits.
EpochLayout choose_layout(const EpochShape& shape, int cluster) {
  for (const int buffers : {2, 1})
    for (int blocks = kMostClusterBlocks; blocks > 0; blocks /= 2) {
      if (cluster ? blocks != cluster : blocks > 1 && shape.hidden < int64_t{blocks} * kFewestUnits) continue;
      const EpochLayout layout = epoch_layout(shape, blocks, buffers);
      if (can_run(layout)) return layout;
    }
  return {};
}

std::string why_no_shape(const EpochShape& shape) {
  if (device_limits().capability_major < 9)
    return "the device, or what kernels were compiled for, has no clusters of blocks (compute capability "
           "9.0)";
  if (shape.classes > kMostClasses) return "more than 32 classes";
  if (shape.features > kMostFeatures || shape.hidden > kMostHidden || shape.batch > kMostBatch)
    return "the network or the batch is too large";
  return "";
}

}  // namespace

std::string why_no_epoch(const EpochShape& shape, int cluster) {
  const std::string reason = why_no_shape(shape);
  if (!reason.empty()) return reason;
  return choose_layout(shape, cluster).cluster ? ""
                                               : "weights, Adam's state and a batch do not fit on the chip";
}

void train_epoch(const EpochArgs& args, int cluster, void* scratch, cudaStream_t stream) {
  const std::string reason = why_no_epoch(args.shape, cluster);
  if (!reason.empty()) throw std::runtime_error(std::string(kOp) + ": " + reason);
  EpochLaunch p = {};
  p.args = args;
  p.layout = choose_layout(args.shape, cluster);
  p.bad = static_cast<int*>(scratch);
  p.constants = reinterpret_cast<StepConstants*>(static_cast<unsigned char*>(scratch) + kEpochHead);
  p.steps = static_cast<int>(epoch_steps(args));
  check_cuda(cudaMemsetAsync(p.bad, 0, sizeof(int), stream), kOp);
  const int64_t blocks = ceil_div(args.count, int64_t{kPrepareThreads});
  const int64_t most = int64_t{device_limits().multiprocessors} * 4;
  launch(kOp, prepare_epoch, static_cast<unsigned>(blocks < most ? blocks : most), kPrepareThreads, 0, stream,
         p, bad_index());
  allow_large_clusters();
  launch_clusters(kOp, train_steps, static_cast<unsigned>(p.layout.cluster),
                  static_cast<unsigned>(p.layout.cluster), kEpochThreads, static_cast<size_t>(p.layout.total),
                  stream, p);
}

}  // namespace fastnn::cuda
