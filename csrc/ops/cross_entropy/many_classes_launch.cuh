// How rows of many classes are distributed over the multiprocessors.
#pragma once

#include "ops/cross_entropy/cluster_classes.cuh"

namespace fastnn::cuda {

namespace {

// Packs of a row that a block should at least have if others could have them: 16 KB. A multiprocessor moves
// about 80 GB/s (64 KB in flight, 0.8 us from memory; predicted, not measured), so that halving a part
// of 32 KB saves 0.2 us of reading and 0.2 us of writing. A barrier of the cluster and a read of another
// block's shared memory, each about 200 cycles, cost 0.25 us once, however many blocks there are.
constexpr int64_t kShortestPart = 1024;

// Blocks of clusters per multiprocessor, one after the other: if clusters share rows, a block's part fills
// it. Each of them starts with about 2 us of sums over the targets, in which nothing else runs, so they
// should be few and take several rows; but enough that the last of them do not run alone for long.
constexpr int kClusterBlocks = 8;

struct RowLayout {
  int cluster;  // blocks that share a row
  int threads;  // of each
  int kept;     // packs of the row that fit in each
};

// A row gets more blocks as long as they cannot hold all of it, because the part that does not fit is read
// twice; and as long as multiprocessors would be idle otherwise. No more than that: blocks with a
// multiprocessor each and 64 KB in flight have four times their share of 3 TB/s, so the others fill the gaps
// between one's reading and writing.
inline RowLayout lay_out_rows(int64_t rows, int64_t packs, bool keep, int64_t room) {
  const DeviceLimits& device = device_limits();
  int cluster = 1;
  for (; cluster < device.cluster_blocks; cluster *= 2) {
    const int64_t part = ceil_div(packs, int64_t{cluster});
    const bool too_long = keep && part > room;
    const bool idle = rows * cluster * 2 <= device.multiprocessors && part >= 2 * kShortestPart;
    if (!too_long && !idle) break;
  }
  const int64_t part = ceil_div(packs, int64_t{cluster});
  // Four packs a thread, as many loads as it has in flight; two blocks of 512 threads, of 64 registers each,
  // share a multiprocessor, so that one loads while the other computes. A part of more than a third of shared
  // memory has it nearly to itself, and uses the most threads.
  int threads = 128;
  while (threads < 512 && part > threads * 4) threads *= 2;
  const int64_t kept = keep ? min(part, room) : 0;
  if (kept * 3 > room) threads = 1024;
  return {cluster, threads, static_cast<int>(kept)};
}

template <class T, bool kDense>
void launch_many(const char* op, const Rows<T>& p, cudaStream_t stream) {
  constexpr size_t kHead = sizeof(RowShared<Acc<T>, kDense>);
  const int64_t rows = p.args.outer;
  const int64_t room = (device_limits().shared_bytes - static_cast<int64_t>(kHead)) / kPackBytes;
  const RowLayout layout =
      lay_out_rows(rows, p.args.classes / kPackSize<T>, p.args.gradient != nullptr, room);
  const size_t shared_bytes = kHead + static_cast<size_t>(layout.kept) * kPackBytes;
  const int64_t teams_at_most =
      layout.cluster == 1 ? kCrossEntropyBlocks
                          : int64_t{device_limits().multiprocessors} * kClusterBlocks / layout.cluster;
  const auto teams = static_cast<unsigned>(min(rows, min(teams_at_most, int64_t{kCrossEntropyBlocks})));
  if (layout.cluster == 1) {
    allow_shared_memory<many_classes<T, kDense>>(op);
    launch(op, many_classes<T, kDense>, teams, layout.threads, shared_bytes, stream, p, layout.kept);
  } else {
    const auto cluster = static_cast<unsigned>(layout.cluster);
    allow_shared_memory<cluster_classes<T, kDense>>(op);
    launch_clusters(op, cluster_classes<T, kDense>, cluster, teams * cluster, layout.threads, shared_bytes,
                    stream, p, layout.kept, layout.cluster);
  }
}

}  // namespace

}  // namespace fastnn::cuda
