// A multi-layer perceptron: its parameters, its optimizer's state, and the buffers of a batch.
#pragma once

#include "core/scratch.h"
#include "fastnn.h"
#include "ops/train_step/train_step.h"

struct Mlp {
 public:
  static constexpr int32_t kMaxDepth = 32;

  Mlp(const int32_t* sizes, int32_t depth, MlpLoss loss);

  int32_t depth() const { return depth_; }
  MlpLoss loss() const { return loss_; }
  int32_t inputs() const { return sizes_[0]; }
  int32_t outputs() const { return sizes_[depth_]; }
  float* weight(int32_t layer) { return layers_[layer].weight.as<float>(); }
  float* bias(int32_t layer) { return layers_[layer].bias.as<float>(); }

  void use(const fastnn::AdamOptions& options);
  void use(const fastnn::SgdOptions& options);
  void set_lr(double lr);
  bool has_optimizer() const { return layers_[0].weight_update.by != fastnn::ParameterUpdate::By::none; }

  // What fastnn_mlp_train does, its arguments having been checked.
  void train(const MlpRows& data, const void* target, const int32_t* rows, int32_t count, int32_t batch,
             float* losses);

  // Outputs of the rows [begin, begin + count), count <= kChunk. They hold until the next call.
  static constexpr int64_t kChunk = 256;
  const float* forward(const MlpRows& data, int64_t begin, int64_t count);

 private:
  struct Batches;

  void lay_out(int64_t batch);
  void steps_of(Batches& batches, int64_t batch, int64_t steps);
  template <class Visit>
  void each_parameter(const Visit& visit);
  template <class Options>
  void begin(Options& own, const Options& options);
  void advance();

  const int32_t depth_;
  const MlpLoss loss_;
  int32_t sizes_[kMaxDepth + 1];
  fastnn::TrainStepLayer layers_[kMaxDepth];

  fastnn::ScratchBuffer parameters_, state_;
  fastnn::AdamOptions adam_ = {};
  fastnn::SgdOptions sgd_ = {};
  int64_t steps_taken_ = 0;

  // Of the batches seen so far, the largest.
  fastnn::ScratchBuffer buffers_;
  fastnn::TensorView input_;          // (batch, inputs)
  int64_t* rows_ = nullptr;           // (batch): which rows of the data set
  int64_t* labels_ = nullptr;         // (batch)
  float* gathered_target_ = nullptr;  // (batch, outputs)
};
