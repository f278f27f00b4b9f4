#include "scheduler.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cuda_runtime.h"
#include "errors.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_emulator {

namespace {

constexpr unsigned kWarp = 32, kMostThreads = 1024, kMostCluster = 16;
constexpr size_t kSharedByDefault = 48 * 1024, kMostParameterBytes = 4096;
constexpr size_t kGuard = 4096;        // after the dynamic shared memory of a block
constexpr unsigned char kFill = 0xff;  // NaN in every floating-point type
constexpr size_t kStack = 128 * 1024;

// A stack on which threads run, one after the other.
struct Fiber {
  jmp_buf at;
  ucontext_t context;
  char* stack;
  bool started = false;
};

// The contributions of the lanes of one mask to one exchange.
struct Meeting {
  const char* name;
  unsigned mask, arrived = 0, left = 0;
  size_t bytes;
  alignas(16) unsigned char data[kWarp * kExchangeBytes];
};

enum class State { not_started, ready, waiting, ended };

struct Block;
struct Thread {
  State state = State::not_started;
  Fiber* fiber = nullptr;
  Block* block = nullptr;
  uint3 index;
  unsigned number;  // in its block
  const char* waits_for = "";
};

struct Block {
  uint3 index;
  unsigned rank;
  unsigned waiting = 0;                // at the barrier
  unsigned ended = 0;                  // threads
  bool any = false, last_any = false;  // of their arguments; of those at the last barrier
  std::vector<Thread> threads;
  std::vector<std::vector<std::unique_ptr<Meeting>>> meetings;  // of each warp
  unsigned char* shared;
};

Order order = Order::forward;
unsigned seed = 0;
long launch_count = 0;
LaunchShape last = {};
bool only_noting = false;
std::vector<const void*> noted;
// By kernel and device.
std::map<std::pair<const void*, const Device*>, std::map<cudaFuncAttribute, int>> attributes;

std::mutex one_launch;
std::vector<std::unique_ptr<Fiber>> all_fibers;
std::vector<Fiber*> free_fibers;
std::vector<Block> blocks;  // those running: one, or a cluster
unsigned cluster_waiting;
Thread* current = nullptr;
jmp_buf scheduler_at;
const std::function<void()>* kernel_body;
std::string failure;

void run_threads() {  // on a fiber; takes the next thread when it is resumed
  for (;;) {
    (*kernel_body)();
    current->state = State::ended;
    if (_setjmp(current->fiber->at) == 0) _longjmp(scheduler_at, 1);
  }
}

Fiber* take_fiber() {
  if (free_fibers.empty()) {
    auto fiber = std::make_unique<Fiber>();
    void* stack =
        mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) std::abort();
    fiber->stack = static_cast<char*>(stack);
    free_fibers.push_back(fiber.get());
    all_fibers.push_back(std::move(fiber));
  }
  Fiber* fiber = free_fibers.back();
  free_fibers.pop_back();
  return fiber;
}

void start(Fiber* fiber) {
  fiber->started = true;
  getcontext(&fiber->context);
  fiber->context.uc_stack.ss_sp = fiber->stack;
  fiber->context.uc_stack.ss_size = kStack;
  fiber->context.uc_link = nullptr;
  makecontext(&fiber->context, run_threads, 0);
  setcontext(&fiber->context);
}

// Runs a thread until it waits, ends or fails.
void resume(Thread& t) {
  current = &t;
  threadIdx = t.index;
  blockIdx = t.block->index;
  t.state = State::ready;
  if (!t.fiber) t.fiber = take_fiber();
  if (_setjmp(scheduler_at) == 0) {
    if (current->fiber->started)
      _longjmp(current->fiber->at, 1);
    else
      start(current->fiber);
  }
  if (current->state == State::ended) {
    ++current->block->ended;
    free_fibers.push_back(current->fiber);
    current->fiber = nullptr;
  }
  current = nullptr;
}

void to_scheduler() {
  if (_setjmp(current->fiber->at) == 0) _longjmp(scheduler_at, 1);
}

void wait_for(const char* what) {
  current->state = State::waiting;
  current->waits_for = what;
  to_scheduler();
}

void wake(Block& block) {
  for (Thread& t : block.threads)
    if (t.state == State::waiting) t.state = State::ready;
  block.waiting = 0;
}

std::vector<unsigned> permutation(unsigned n, std::mt19937& random) {
  std::vector<unsigned> result(n);
  for (unsigned i = 0; i < n; ++i) result[i] = i;
  if (order == Order::reverse) std::reverse(result.begin(), result.end());
  if (order == Order::threads) std::shuffle(result.begin(), result.end(), random);
  if (order == Order::warps) {
    std::vector<unsigned> warps((n + kWarp - 1) / kWarp);
    for (unsigned w = 0; w < warps.size(); ++w) warps[w] = w;
    std::shuffle(warps.begin(), warps.end(), random);
    result.clear();
    for (const unsigned w : warps)
      for (unsigned i = w * kWarp; i < std::min(n, (w + 1) * kWarp); ++i) result.push_back(i);
  }
  return result;
}

std::string told(const Block& block, const Thread& t) {
  return "thread " + std::to_string(t.number) + " of block " + std::to_string(block.index.x);
}

// No thread can run and some wait: says which wait where.
std::string deadlock() {
  std::map<std::string, unsigned> where;
  for (const Block& block : blocks)
    for (const Thread& t : block.threads)
      ++where[t.state == State::ended ? "have ended" : std::string("wait at ") + t.waits_for];
  std::string text = "deadlock in block " + std::to_string(blocks[0].index.x) + ":";
  for (const auto& [state, count] : where) text += " " + std::to_string(count) + " threads " + state + ",";
  text.back() = '.';
  return text;
}

// Runs each of these threads that can run, in this order, until none of them can continue without others.
// Returns whether any could.
bool run_threads_of(const unsigned* sequence, size_t count) {
  const size_t in_block = blocks[0].threads.size();
  bool any = false;
  for (bool progress = true; progress;) {
    progress = false;
    for (size_t k = 0; k < count; ++k) {
      Thread& t = blocks[sequence[k] / in_block].threads[sequence[k] % in_block];
      if (t.state != State::ready && t.state != State::not_started) continue;
      any = progress = true;
      resume(t);
      if (!failure.empty()) {
        failure = told(*t.block, t) + ": " + failure;
        return false;
      }
    }
  }
  return any;
}

// A warp runs as far as it can before another one does, and in the orders that take one block after the other
// so does a block of a cluster: they overtake those that do not make them wait. Threads in random order
// alternate.
void run_blocks(const std::vector<unsigned>& sequence) {
  const size_t all = sequence.size();
  const size_t together = order == Order::threads ? all : kWarp;
  const size_t ahead = order == Order::threads || order == Order::warps ? all : blocks[0].threads.size();
  for (bool progress = true; progress;) {
    progress = false;
    for (size_t begin = 0; begin < all; begin += ahead)
      for (bool in_block = true; in_block;) {
        in_block = false;
        for (size_t first = begin; first < begin + ahead; first += together)
          if (run_threads_of(&sequence[first], std::min(together, begin + ahead - first)))
            progress = in_block = true;
        if (!failure.empty()) return;
      }
  }
  for (const Block& block : blocks)
    for (const Thread& t : block.threads)
      if (t.state != State::ended) {
        failure = deadlock();
        return;
      }
}

// Threads that will never continue abandon their fibers in the middle of the kernel.
void abandon() {
  for (Block& block : blocks)
    for (Thread& t : block.threads)
      if (t.fiber) {
        t.fiber->started = false;
        free_fibers.push_back(t.fiber);
      }
}

void check_guards(size_t shared_bytes) {
  for (const Block& block : blocks)
    for (size_t i = 0; i < kGuard; ++i)
      if (block.shared[shared_bytes + i] != kFill) {
        failure = "block " + std::to_string(block.index.x) + " wrote beyond its " +
                  std::to_string(shared_bytes) + " bytes of dynamic shared memory, at byte " +
                  std::to_string(shared_bytes + i);
        return;
      }
}

int attribute_of(const void* kernel, cudaFuncAttribute attribute, int otherwise) {
  const auto found = attributes.find({kernel, &device()});
  if (found == attributes.end() || found->second.count(attribute) == 0) return otherwise;
  return found->second.at(attribute);
}

unsigned cluster_of(const cudaLaunchConfig_t& config) {
  unsigned cluster = 1;
  for (unsigned i = 0; i < config.numAttrs; ++i)
    if (config.attrs[i].id == cudaLaunchAttributeClusterDimension) cluster = config.attrs[i].val.clusterDim.x;
  return cluster;
}

std::string why_invalid(const cudaLaunchConfig_t& config, const void* kernel, size_t parameter_bytes,
                        unsigned cluster) {
  const dim3 &grid = config.gridDim, &block = config.blockDim;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > kMostThreads || block.z > 64)
    return "a block of " + std::to_string(threads) + " threads";
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return "an empty grid";
  if (grid.x > INT32_MAX || grid.y > UINT16_MAX || grid.z > UINT16_MAX) return "the grid is too large";
  const auto allowed = static_cast<size_t>(std::min(
      device().shared_bytes,
      attribute_of(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kSharedByDefault))));
  if (config.dynamicSmemBytes > allowed)
    return std::to_string(config.dynamicSmemBytes) + " bytes of dynamic shared memory, allowed are " +
           std::to_string(allowed);
  if (parameter_bytes > kMostParameterBytes) return std::to_string(parameter_bytes) + " bytes of parameters";
  const bool large = attribute_of(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 0) != 0;
  const int allowed_cluster = device().capability_major < 9 ? 1 : large ? 16 : 8;
  if (cluster == 0 || cluster > static_cast<unsigned>(allowed_cluster) || grid.x % cluster != 0)
    return "clusters of " + std::to_string(cluster) + " blocks in a grid of " + std::to_string(grid.x);
  return "";
}

void place_blocks(const dim3& grid, uint64_t first, unsigned cluster, std::vector<unsigned char>& shared,
                  size_t shared_bytes) {
  const size_t room = (shared_bytes + kGuard + 127) / 128 * 128;
  shared.assign(cluster * room + 128, kFill);
  auto* base =
      reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(shared.data()) + 127) / 128 * 128);
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  blocks.resize(cluster);
  cluster_waiting = 0;
  for (unsigned rank = 0; rank < cluster; ++rank) {
    Block& block = blocks[rank];
    const uint64_t i = first + rank;
    block.index = {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                   static_cast<unsigned>(i / grid.x / grid.y)};
    block.rank = rank;
    block.waiting = block.ended = 0;
    block.any = false;
    block.shared = base + rank * room;
    block.meetings.resize((threads + kWarp - 1) / kWarp);
    for (auto& of_warp : block.meetings) of_warp.clear();
    block.threads.assign(threads, Thread{});
    for (unsigned t = 0; t < threads; ++t) {
      block.threads[t].block = &block;
      block.threads[t].number = t;
      block.threads[t].index = {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
    }
  }
}

}  // namespace

void set_order(Order new_order, unsigned new_seed) {
  order = new_order;
  seed = new_seed;
}

long launches() { return launch_count; }

LaunchShape last_launch() { return last; }

void only_note(bool noting) { only_noting = noting; }

std::vector<const void*> take_noted() { return std::exchange(noted, {}); }

void fail(const char* message) {
  if (!current) {
    std::fprintf(stderr, "CUDA emulator, outside a kernel: %s\n", message);
    std::abort();
  }
  failure = message;
  _longjmp(scheduler_at, 1);
}

bool sync_block(bool mine) {
  Block& block = *current->block;
  block.any |= mine;
  if (++block.waiting < block.threads.size()) {
    wait_for("__syncthreads");
  } else {
    block.last_any = block.any;
    block.any = false;
    wake(block);
  }
  return block.last_any;
}

void sync_cluster() {
  if (++cluster_waiting < blocks.size() * current->block->threads.size()) return wait_for("cluster_sync");
  cluster_waiting = 0;
  for (Block& block : blocks) wake(block);
}

int lane() { return static_cast<int>(current->number % kWarp); }

size_t thread() { return current->block->rank * current->block->threads.size() + current->number; }

unsigned cluster_rank() { return current->block->rank; }

unsigned char* dynamic_shared() { return current->block->shared; }

unsigned char* dynamic_shared_of(unsigned rank) {
  if (rank >= blocks.size()) fail("there is no block of this rank in the cluster");
  if (blocks[rank].ended == blocks[rank].threads.size())
    fail("a block of the cluster whose shared memory is looked at has ended");
  return blocks[rank].shared;
}

void exchange_bytes(const char* name, unsigned mask, const void* mine, size_t bytes, void* all) {
  const unsigned me = current->number % kWarp, bit = 1u << me;
  if ((mask & bit) == 0) fail("a lane is not in its own mask");
  auto& of_warp = current->block->meetings[current->number / kWarp];
  Meeting* meeting = nullptr;
  for (const auto& open : of_warp) {
    if (open->arrived == open->mask) continue;  // complete; some have not yet read
    if (open->mask == mask && std::string(open->name) == name && open->bytes == bytes)
      meeting = open.get();
    else if ((open->mask & bit) != 0)
      fail((std::string("lanes of a warp have come to different places: ") + open->name + " and " + name)
               .c_str());
  }
  if (!meeting) {
    of_warp.push_back(std::make_unique<Meeting>());
    meeting = of_warp.back().get();
    meeting->name = name;
    meeting->mask = mask;
    meeting->bytes = bytes;
  }
  std::memcpy(meeting->data + me * bytes, mine, bytes);
  meeting->arrived |= bit;
  if (meeting->arrived != mask) {
    wait_for(name);
  } else {
    Thread* first = &current->block->threads[current->number / kWarp * kWarp];
    for (unsigned i = 0; i < kWarp; ++i)
      if ((mask >> i & 1) != 0 && i != me) first[i].state = State::ready;
  }
  std::memcpy(all, meeting->data, kWarp * bytes);
  meeting->left |= bit;
  if (meeting->left != mask) return;
  of_warp.erase(
      std::find_if(of_warp.begin(), of_warp.end(), [&](const auto& m) { return m.get() == meeting; }));
}

cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize &&
      (value < 0 || value > device().shared_bytes))
    return set_error(cudaErrorInvalidValue, "invalid argument");
  attributes[{kernel, &device()}][attribute] = value;
  return cudaSuccess;
}

int active_clusters(const cudaLaunchConfig_t& config, const void* kernel) {
  return why_invalid(config, kernel, 0, cluster_of(config)).empty() ? 1 : 0;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, size_t parameter_bytes,
                   const std::function<void()>& body) {
  const std::lock_guard<std::mutex> lock(one_launch);
  const unsigned cluster = cluster_of(config);
  const std::string invalid = why_invalid(config, kernel, parameter_bytes, cluster);
  if (!invalid.empty()) return set_error(cudaErrorInvalidConfiguration, "invalid configuration: " + invalid);

  ++launch_count;
  last = {config.gridDim.x / cluster, cluster, config.blockDim.x, config.dynamicSmemBytes};
  if (only_noting) {
    noted.push_back(kernel);
    return cudaSuccess;
  }
  gridDim = config.gridDim;
  blockDim = config.blockDim;
  kernel_body = &body;
  failure.clear();
  std::mt19937 random(seed);
  std::vector<unsigned char> shared;
  const uint64_t groups = uint64_t{gridDim.x} * gridDim.y * gridDim.z / cluster;
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  const std::vector<unsigned> group_order = permutation(static_cast<unsigned>(groups), random);
  for (const unsigned group : group_order) {
    place_blocks(gridDim, uint64_t{group} * cluster, cluster, shared, config.dynamicSmemBytes);
    run_blocks(permutation(cluster * threads, random));
    if (failure.empty()) check_guards(config.dynamicSmemBytes);
    if (!failure.empty()) {
      abandon();
      return set_error(cudaErrorLaunchFailure, failure);
    }
  }
  return cudaSuccess;
}

}  // namespace cuda_emulator
