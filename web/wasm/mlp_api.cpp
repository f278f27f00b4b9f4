// The functions of fastnn.h on an Mlp: checks, and the calls.
#include <cmath>
#include <cstring>
#include <new>

#include "gemm/blocking.h"
#include "mlp.h"
#include "refusal.h"
#include "views.h"

using namespace fastnn;
using namespace fastnn::FASTNN_ISA;

namespace {

constexpr const char* kOp = "Mlp";

// Whether the class indices named by `rows`, or all with null, are classes; else the reason is left.
Status check_labels(const Mlp& mlp, const void* target, const int32_t* rows, int64_t count) {
  if (mlp.loss() != kCrossEntropy) return kOk;
  const int32_t* const labels = static_cast<const int32_t*>(target);
  const int64_t bad = bad_label(labels, rows, count, mlp.outputs());
  if (bad < 0) return kOk;
  return refuse(kOutOfRange, kOp, "target ", labels[rows ? rows[bad] : bad], " is out of bounds");
}

int32_t largest(const float* values, int32_t count) {
  int32_t at = 0;
  for (int32_t i = 1; i < count; ++i)
    if (values[i] > values[at]) at = i;
  return at;
}

}  // namespace

Mlp* fastnn_mlp_new(const int32_t* sizes, int32_t count, int32_t loss) {
  if (count < 2 || count > Mlp::kMaxDepth + 1) {
    refuse(kInvalid, kOp, "expected 2 to ", Mlp::kMaxDepth + 1, " sizes, got ", count);
    return nullptr;
  }
  for (int32_t i = 0; i < count; ++i)
    if (sizes[i] < 1) {
      refuse(kInvalid, kOp, "a layer has ", sizes[i], " features");
      return nullptr;
    }
  if (loss != kCrossEntropy && loss != kMeanSquaredError) {
    refuse(kInvalid, kOp, "no loss has the number ", loss);
    return nullptr;
  }
  return new (fastnn_allocate(sizeof(Mlp))) Mlp(sizes, count - 1, static_cast<MlpLoss>(loss));
}

void fastnn_mlp_delete(Mlp* mlp) {
  if (mlp) mlp->~Mlp();
  fastnn_free(mlp);
}

float* fastnn_mlp_weight(Mlp* mlp, int32_t layer) {
  return layer >= 0 && layer < mlp->depth() ? mlp->weight(layer) : nullptr;
}

float* fastnn_mlp_bias(Mlp* mlp, int32_t layer) {
  return layer >= 0 && layer < mlp->depth() ? mlp->bias(layer) : nullptr;
}

Status fastnn_mlp_use_adam(Mlp* mlp, double lr, double beta1, double beta2, double eps, double weight_decay,
                           int32_t decoupled) {
  // As torch.optim.Adam has it.
  if (!(lr >= 0)) return refuse(kInvalid, kOp, "lr must be at least 0");
  if (!(beta1 >= 0 && beta1 < 1 && beta2 >= 0 && beta2 < 1))
    return refuse(kInvalid, kOp, "betas must be at least 0 and less than 1");
  if (!(eps >= 0)) return refuse(kInvalid, kOp, "eps must be at least 0");
  if (!(weight_decay >= 0)) return refuse(kInvalid, kOp, "weight_decay must be at least 0");
  AdamOptions options = {};
  options.lr = lr;
  options.beta1 = beta1;
  options.beta2 = beta2;
  options.eps = eps;
  options.weight_decay = weight_decay;
  options.decoupled = decoupled != 0;
  mlp->use(options);
  return kOk;
}

Status fastnn_mlp_use_sgd(Mlp* mlp, double lr, double momentum, double dampening, double weight_decay,
                          int32_t nesterov) {
  // As torch.optim.SGD has it.
  if (!(lr >= 0)) return refuse(kInvalid, kOp, "lr must be at least 0");
  if (!(momentum >= 0)) return refuse(kInvalid, kOp, "momentum must be at least 0");
  if (!(weight_decay >= 0)) return refuse(kInvalid, kOp, "weight_decay must be at least 0");
  if (nesterov && (momentum == 0 || dampening != 0))
    return refuse(kInvalid, kOp, "nesterov needs a momentum and no dampening");
  SgdOptions options = {};
  options.lr = lr;
  options.momentum = momentum;
  options.dampening = dampening;
  options.l2 = weight_decay;
  options.nesterov = nesterov != 0;
  mlp->use(options);
  return kOk;
}

Status fastnn_mlp_set_lr(Mlp* mlp, double lr) {
  if (!(lr >= 0)) return refuse(kInvalid, kOp, "lr must be at least 0");
  mlp->set_lr(lr);
  return kOk;
}

Status fastnn_mlp_train(Mlp* mlp, const MlpRows* data, const void* target, const int32_t* rows, int32_t count,
                        int32_t batch, float* losses) {
  if (!mlp->has_optimizer()) return refuse(kInvalid, kOp, "no optimizer was chosen");
  if (count < 1) return refuse(kInvalid, kOp, "the batch is empty");
  if (batch < 1) return refuse(kInvalid, kOp, "a batch of ", batch, " rows");
  for (int32_t i = 0; i < count; ++i)
    if (rows[i] < 0 || rows[i] >= data->rows)
      return refuse(kOutOfRange, kOp, "row ", rows[i], " of ", data->rows);
  if (const Status status = check_labels(*mlp, target, rows, count); status != kOk) return status;
  mlp->train(*data, target, rows, count, batch, losses);
  return kOk;
}

Status fastnn_mlp_predict(Mlp* mlp, const MlpRows* data, float* y) {
  const int64_t outputs = mlp->outputs();
  for (int64_t begin = 0; begin < data->rows; begin += Mlp::kChunk) {
    const int64_t count = min(Mlp::kChunk, data->rows - begin);
    std::memcpy(y + begin * outputs, mlp->forward(*data, begin, count),
                static_cast<size_t>(count * outputs) * sizeof(float));
  }
  return kOk;
}

Status fastnn_mlp_evaluate(Mlp* mlp, const MlpRows* data, const void* target, double* result) {
  if (const Status status = check_labels(*mlp, target, nullptr, data->rows); status != kOk) return status;
  const int32_t outputs = mlp->outputs();
  const bool classes = mlp->loss() == kCrossEntropy;
  double loss = 0;
  int64_t counted = 0, right = 0;
  for (int64_t begin = 0; begin < data->rows; begin += Mlp::kChunk) {
    const int64_t count = min(Mlp::kChunk, data->rows - begin);
    const float* const y = mlp->forward(*data, begin, count);
    if (!classes) {
      const float* const t = static_cast<const float*>(target) + begin * outputs;
      for (int64_t i = 0; i < count * outputs; ++i) {
        const double difference = static_cast<double>(y[i]) - static_cast<double>(t[i]);
        loss += difference * difference;
      }
      counted += count * outputs;
      continue;
    }
    const int32_t* const labels = static_cast<const int32_t*>(target) + begin;
    int64_t wide[Mlp::kChunk];
    for (int64_t i = 0; i < count; ++i) {
      wide[i] = labels[i];
      if (labels[i] == kIgnoredLabel) continue;
      ++counted;
      right += largest(y + i * outputs, outputs) == labels[i];
    }
    CrossEntropyArgs args = cross_entropy_of(count, outputs, wide, Reduction::sum);
    args.logits = y;
    loss += cross_entropy_kernels().forward(args).loss;
  }
  result[0] = loss / static_cast<double>(counted);
  result[1] = classes ? static_cast<double>(right) / static_cast<double>(counted) : NAN;
  return kOk;
}
