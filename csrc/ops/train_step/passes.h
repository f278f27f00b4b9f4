// The passes of a training step other than products.
#pragma once

#include "core/activation/apply.h"
#include "core/block_sum.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "gemm/blocking.h"
#include "gemm/operand.h"
#include "ops/train_step/losses.h"
#include "ops/train_step/train_step.h"

namespace fastnn::FASTNN_ISA {

namespace {

// Values that are worth a second thread, as for any elementwise pass.
constexpr int64_t kPassGrain = 32768;

// What the gradient of a layer's activation is computed from.
inline const TensorView& saved_of(const TrainStepLayer& layer) {
  return from_preactivation(layer.activation) ? layer.preactivation : layer.output;
}

// Named rows are in an order that no prefetcher can predict. The beginning of each is prefetched this many
// rows ahead, for the page tables more than for the cache line: 128 rows of 784 bytes out of 47 MB took 51 us
// instead of 60, and prefetching all lines of a row made no difference.
constexpr int64_t kRowsAhead = 16;

// Values of a row that are worth a second thread: less than kPassGrain, because their memory accesses are
// slow.
constexpr int64_t kRowGrain = 8192;

// Calls use(i, row) for each row of a batch: those of `from` that are named, or with null all of them.
template <class Use>
void each_row(const void* from, int64_t stride_bytes, const int64_t* rows, int64_t m, int64_t grain,
              const Use& use) {
  const char* const first = static_cast<const char*>(from);
  parallel_for(m, grain, [&](int64_t begin, int64_t end) {
    if (rows)
      for (int64_t i = begin; i < min(begin + kRowsAhead, end); ++i)
        __builtin_prefetch(first + rows[i] * stride_bytes);
    for (int64_t i = begin; i < end; ++i) {
      if (rows && i + kRowsAhead < end) __builtin_prefetch(first + rows[i + kRowsAhead] * stride_bytes);
      use(i, first + (rows ? rows[i] : i) * stride_bytes);
    }
  });
}

// If the input cannot be used in place.
template <class T>
void make_images(const TrainStepArgs& args) {
  const bool bytes = args.input.dtype == DType::u8;
  const int64_t k = args.images.shape[1], size = bytes ? 1 : sizeof(T);
  const T scale = static_cast<T>(args.byte_scale), shift = static_cast<T>(args.byte_shift);
  each_row(args.input.data, args.input.strides[0] * size, args.rows, args.batch,
           ceil_div(args.rows ? kRowGrain : kPassGrain, k + 1), [&](int64_t i, const char* row) {
             T* const to = args.images.as<T>() + i * k;
             if (bytes) {
               const uint8_t* const from = reinterpret_cast<const uint8_t*>(row);
               for (int64_t j = 0; j < k; ++j) to[j] = static_cast<T>(from[j]) * scale + shift;
             } else {
               __builtin_memcpy(to, row, static_cast<size_t>(k * size));
             }
           });
}

template <class T>
void make_target(const TrainStepArgs& args, int64_t n) {
  const int64_t row_bytes = n * static_cast<int64_t>(sizeof(T));
  char* const to = static_cast<char*>(args.gathered_target);
  each_row(args.targets, args.targets_stride, args.rows, args.batch, ceil_div(kRowGrain, n),
           [&](int64_t i, const char* row) {
             __builtin_memcpy(to + i * row_bytes, row, static_cast<size_t>(row_bytes));
           });
}

// g *= act'(z), on the last layer; below it the products do this as they write.
template <class T>
void through_activation(const TrainStepLayer& layer) {
  if (layer.activation == Activation::none) return;
  T* const g = layer.gradient.as<T>();
  const T* const s = saved_of(layer).as<const T>();
  constexpr int64_t kL = kLanes<T>;
  const int64_t total = layer.gradient.numel();
  parallel_for(ceil_div(total, kL), kPassGrain / kL, [&](int64_t begin, int64_t end) {
    apply_gradient(layer.activation, g + begin * kL, s + begin * kL, min(end * kL, total) - begin * kL);
  });
}

// db = column sums of g (m, n), in blocks of rows that are then added up, which bounds the rounding error by
// (block + m / block) eps.
template <class T>
void column_sums(const T* g, int64_t m, int64_t n, T* db) {
  constexpr int64_t kL = kLanes<T>, kRowBlock = 32;
  parallel_for(ceil_div(n, kL), ceil_div(kPassGrain, m * kL), [&](int64_t begin, int64_t end) {
    for (int64_t v = begin; v < end; ++v) {
      const int64_t j = v * kL;
      const int lanes = static_cast<int>(min(kL, n - j));
      Vec<T> total{};
      for (int64_t block = 0; block < m; block += kRowBlock) {
        Vec<T> sum{};
        for (int64_t i = block; i < min(block + kRowBlock, m); ++i)
          sum += lanes == kL ? load(g + i * n + j) : load_partial(g + i * n + j, lanes);
        total += sum;
      }
      store_lanes(db + j, total, lanes);
    }
  });
}

// Sum of term(begin, end) over blocks of [0, total), independent of the number of threads; every member of a
// team gets it.
template <class T, class Term>
double sum_of_blocks(int64_t total, const Term& term) {
  constexpr int64_t kSize = kBlock<T>;
  const int64_t blocks = ceil_div(total, kSize);
  double* const partial =
      static_cast<double*>(shared_scratch(Scratch::accumulate, static_cast<size_t>(blocks) * sizeof(double)));
  parallel_for(blocks, ceil_div(kPassGrain, kSize), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) partial[b] = term(b * kSize, min((b + 1) * kSize, total));
  });
  double sum = 0;
  for (int64_t b = 0; b < blocks; ++b) sum += partial[b];
  wait_for_team();
  return sum;
}

// Loss and gradient by a rule of losses.h, its mean or sum over all elements.
template <class T>
void elementwise_loss(const TrainStepArgs& args, const TensorView& output, const TensorView& gradient) {
  const int64_t total = output.numel();
  const double scale = args.mean ? 1 / static_cast<double>(total) : 1;
  with_loss_rule<T>(args, scale, output.shape[1], [&](const auto& rule) {
    const double sum = sum_of_blocks<T>(total, [&](int64_t begin, int64_t end) {
      const T* const t = static_cast<const T*>(args.target) + begin;
      T* const g = gradient.as<T>() + begin;
      return block_sum(output.as<const T>() + begin, end - begin, T(0), [&](Vec<T> y, int64_t k, int lanes) {
        Vec<T> slope;
        const Vec<T> value = rule(y, load_lanes(t + k, lanes), begin + k, slope);
        store_lanes(g + k, slope, lanes);
        return lanes == kLanes<T> ? value : first_lanes<T>(value, lanes);
      });
    });
    if (leads_team()) *static_cast<T*>(args.loss) = static_cast<T>(sum * scale);
  });
}

template <class T>
double sum_of_squares(const T* g, int64_t total) {
  return sum_of_blocks<T>(total, [&](int64_t begin, int64_t end) {
    return block_sum(g + begin, end - begin, T(0), [](Vec<T> v, int64_t, int) { return v * v; });
  });
}

template <class T>
void scale_values(T* g, int64_t total, T by) {
  parallel_for(total, kPassGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) g[i] *= by;
  });
}

}  // namespace

}  // namespace fastnn::FASTNN_ISA
