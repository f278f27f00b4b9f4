// The table of CPU kernels, filled once at import with the best variant that this machine can run.
#pragma once

#include "core/cpu_features.h"
#include "gemm/pair_microkernel.h"
#include "ops/adagrad/adagrad.h"
#include "ops/adam/adam.h"
#include "ops/bernoulli/bernoulli.h"
#include "ops/clip/clip.h"
#include "ops/cross_entropy/cross_entropy.h"
#include "ops/gram/gram.h"
#include "ops/linear/linear.h"
#include "ops/linear_cross_entropy/linear_cross_entropy.h"
#include "ops/polyak/polyak.h"
#include "ops/probe/probe.h"
#include "ops/relu/relu.h"
#include "ops/rmsprop/rmsprop.h"
#include "ops/sgd/sgd.h"
#include "ops/train_step/train_step.h"
#include "ops/vec_math/vec_math.h"
#include "program/instruction.h"

namespace fastnn {

struct CpuKernels {
  AdagradKernels adagrad;
  AdamKernels adam;
  BernoulliKernels bernoulli;
  ClipKernels clip;
  CrossEntropyKernels cross_entropy;
  GramKernels gram;
  LinearKernels linear;
  LinearCrossEntropyKernels linear_cross_entropy;
  PairMicrokernels pair_microkernels;
  PolyakKernels polyak;
  ProbeKernels probe;
  ProgramKernels program;
  ReluKernels relu;
  RmspropKernels rmsprop;
  SgdKernels sgd;
  TrainStepKernels train_step;
  VecMathKernels vec_math;
};

// Chooses the variant: the best supported one, or the one that `requested` names ("" asks for the best).
// Throws std::invalid_argument for a name that is unknown, or that this machine or this build lacks.
void select_cpu_kernels(const char* requested);

// For tests, until the next selection: bfloat16 products take the way of pairs also where the processor lacks
// the instruction, which two FMAs then stand for (slower than converting to float).
void emulate_pairs();

const CpuKernels& cpu_kernels();
CpuIsa selected_isa();

}  // namespace fastnn
