// Normalisation of channels.
#include "core/block_sum.h"
#include "program/channels.h"
#include "program/instruction.h"

namespace fastnn::FASTNN_ISA {

namespace {

ChannelShape shape_of(const TensorView& x) {
  ChannelShape s{x.shape[0], x.shape[1], 1};
  for (int d = 2; d < x.ndim; ++d) s.l *= x.shape[d];
  return s;
}

double inverse_deviation(double variance, double eps) {
  return variance == 0 && eps == 0 ? 0 : 1 / __builtin_sqrt(variance + eps);
}

template <class T>
void mean_and_squares(const T* x, const ChannelShape& s, int64_t first, int count, double* mean,
                      double* squares) {
  const double values = static_cast<double>(s.n * s.l);
  ChannelSums<T> sums;
  for_vectors<T>(
      s, first, count,
      [&](int64_t at, int channel, int lanes) { sums.add(channel, load_lanes(x + at, lanes)); },
      [&] { sums.pause(); });
  sums.store_to(mean, s);
  for (int j = 0; j < count; ++j) mean[j] /= values;
  PerChannel<T> centre;
  centre.set(mean, count, s);
  ChannelSums<T> deviations;
  for_vectors<T>(
      s, first, count,
      [&](int64_t at, int channel, int lanes) {
        const Vec<T> d = load_lanes(x + at, lanes) - centre.at(channel);
        deviations.add(channel, lanes == kLanes<T> ? d * d : first_lanes<T>(d * d, lanes));
      },
      [&] { deviations.pause(); });
  deviations.store_to(squares, s);
}

// y = (x - mean) scale + bias.
template <class T>
void normalise(T* y, const T* x, const ChannelShape& s, int64_t first, int count, const double* mean,
               const double* scale, const double* bias) {
  PerChannel<T> centre, factor, shift;
  centre.set(mean, count, s);
  factor.set(scale, count, s);
  shift.set(bias, count, s);
  for_vectors<T>(s, first, count, [&](int64_t at, int channel, int lanes) {
    const Vec<T> d = load_lanes(x + at, lanes) - centre.at(channel);
    store_lanes(y + at, d * factor.at(channel) + shift.at(channel), lanes);
  });
}

template <class T>
void batch_norm_typed(const Instruction& i) {
  const bool training = i.code[0], updates = i.code[1], with_weight = i.code[2], with_bias = i.code[3];
  const double eps = i.numbers[0], momentum = i.numbers[1];
  const TensorView* next = i.operands;
  T* const y = (next++)->as<T>();
  T* const save_mean = training ? (next++)->as<T>() : nullptr;
  T* const save_inverse = training ? (next++)->as<T>() : nullptr;
  T* running_mean = updates ? (next++)->as<T>() : nullptr;
  T* running_var = updates ? (next++)->as<T>() : nullptr;
  const TensorView& x = *next++;
  const T* const weight = with_weight ? (next++)->as<const T>() : nullptr;
  const T* const bias = with_bias ? (next++)->as<const T>() : nullptr;
  if (!training) {
    running_mean = next[0].as<T>();
    running_var = next[1].as<T>();
  }
  const ChannelShape s = shape_of(x);
  const double values = static_cast<double>(s.n * s.l);
  for_channels<T>(s, [&](int64_t first, int count) {
    double mean[kGroup<T>], squares[kGroup<T>], scale[kGroup<T>], shift[kGroup<T>];
    if (training) mean_and_squares(x.as<const T>(), s, first, count, mean, squares);
    for (int j = 0; j < count; ++j) {
      const int64_t c = first + j;
      if (updates) {
        running_mean[c] =
            static_cast<T>(momentum * mean[j] + (1 - momentum) * static_cast<double>(running_mean[c]));
        running_var[c] = static_cast<T>(momentum * (squares[j] / (values - 1)) +
                                        (1 - momentum) * static_cast<double>(running_var[c]));
      }
      if (!training) mean[j] = static_cast<double>(running_mean[c]);
      const double variance = training ? squares[j] / values : static_cast<double>(running_var[c]);
      const T inverse = static_cast<T>(inverse_deviation(variance, eps));
      if (training) {
        save_mean[c] = static_cast<T>(mean[j]);
        save_inverse[c] = inverse;
      }
      scale[j] = static_cast<double>(inverse) * (weight ? static_cast<double>(weight[c]) : 1);
      shift[j] = bias ? static_cast<double>(bias[c]) : 0;
    }
    normalise(y, x.as<const T>(), s, first, count, mean, scale, shift);
  });
}

// Each channel of x, contiguous (N, C, L...), minus its mean and divided by its deviation. code: training,
// whether running statistics are updated, has weight, has bias. Operands, contiguous: y; mean and 1 /
// deviation of the batch if training; running mean and variance if updated; x; weight; bias; running mean and
// variance unless training. numbers: the constant added to the variance, momentum.
void batch_norm(const Instruction& i) {
  if (i.operands[0].dtype == DType::f64) return batch_norm_typed<double>(i);
  batch_norm_typed<float>(i);
}

enum Wanted : int64_t { kWantsX = 1, kWantsWeight = 2, kWantsBias = 4, kHasWeight = 8, kTraining = 16 };

template <class T>
void batch_norm_backward_typed(const Instruction& i) {
  const int64_t wanted = i.code[0];
  const bool training = wanted & kTraining;
  const double eps = i.numbers[0];
  const TensorView* next = i.operands;
  T* const dx = wanted & kWantsX ? (next++)->as<T>() : nullptr;
  T* const dweight = wanted & kWantsWeight ? (next++)->as<T>() : nullptr;
  T* const dbias = wanted & kWantsBias ? (next++)->as<T>() : nullptr;
  const ChannelShape s = shape_of(*next);
  const T* const dy = (next++)->as<const T>();
  const T* const x = (next++)->as<const T>();
  const T* const means = (next++)->as<const T>();
  const T* const spreads = (next++)->as<const T>();
  const T* const weight = wanted & kHasWeight ? next->as<const T>() : nullptr;
  const double values = static_cast<double>(s.n * s.l);
  const bool needs_sums = training || dweight || dbias;
  for_channels<T>(s, [&](int64_t first, int count) {
    double mean[kGroup<T>], inverse[kGroup<T>], sum_g[kGroup<T>], sum_gx[kGroup<T>];
    for (int j = 0; j < count; ++j) {
      const auto spread = static_cast<double>(spreads[first + j]);
      mean[j] = static_cast<double>(means[first + j]);
      inverse[j] = training ? spread : inverse_deviation(spread, eps);
    }
    PerChannel<T> centre;
    centre.set(mean, count, s);
    if (needs_sums) {
      ChannelSums<T> g, gx;
      for_vectors<T>(
          s, first, count,
          [&](int64_t at, int channel, int lanes) {
            const Vec<T> d = load_lanes(dy + at, lanes);
            const Vec<T> product = d * (load_lanes(x + at, lanes) - centre.at(channel));
            g.add(channel, d);
            gx.add(channel, lanes == kLanes<T> ? product : first_lanes<T>(product, lanes));
          },
          [&] { g.pause(), gx.pause(); });
      g.store_to(sum_g, s);
      gx.store_to(sum_gx, s);
    }
    for (int j = 0; j < count; ++j) {
      if (dweight) dweight[first + j] = static_cast<T>(sum_gx[j] * inverse[j]);
      if (dbias) dbias[first + j] = static_cast<T>(sum_g[j]);
      if (training) {
        sum_g[j] /= values;
        sum_gx[j] = sum_gx[j] * inverse[j] * inverse[j] / values;
      }
      if (weight) inverse[j] *= static_cast<double>(weight[first + j]);
    }
    if (!dx) return;
    PerChannel<T> mean_g, slope, factor;
    factor.set(inverse, count, s);
    if (!training) {
      for_vectors<T>(s, first, count, [&](int64_t at, int channel, int lanes) {
        store_lanes(dx + at, load_lanes(dy + at, lanes) * factor.at(channel), lanes);
      });
      return;
    }
    mean_g.set(sum_g, count, s);
    slope.set(sum_gx, count, s);
    for_vectors<T>(s, first, count, [&](int64_t at, int channel, int lanes) {
      const Vec<T> d = load_lanes(x + at, lanes) - centre.at(channel);
      const Vec<T> g = (load_lanes(dy + at, lanes) - mean_g.at(channel)) - d * slope.at(channel);
      store_lanes(dx + at, g * factor.at(channel), lanes);
    });
  });
}

// The gradients of batch_norm that the bits of code[0] ask for. Operands, contiguous: dx, dweight, dbias, of
// which only those asked for; dy, x; mean and 1 / deviation of the batch if the bit of training is set, else
// running mean and variance; weight if its bit is set. numbers: the constant added to the variance.
void batch_norm_backward(const Instruction& i) {
  if (i.operands[0].dtype == DType::f64) return batch_norm_backward_typed<double>(i);
  batch_norm_backward_typed<float>(i);
}

constexpr NamedInstruction kInstructions[] = {{"batch_norm", batch_norm},
                                              {"batch_norm_backward", batch_norm_backward}};

}  // namespace

InstructionFamily batch_norm_instructions() {
  return {kInstructions, sizeof(kInstructions) / sizeof(*kInstructions)};
}

}  // namespace fastnn::FASTNN_ISA
