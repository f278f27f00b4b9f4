// The losses that are a mean or a sum over elements: for an output y and its target t
//   squared error      d^2                                    2 d                  with d = y - t
//   absolute error     |d|                                    sign(d)
//   smooth L1          d^2 / (2 beta)  where |d| < beta       d / beta
//                      |d| - beta / 2  elsewhere              sign(d)
//   Huber              d^2 / 2                where |d| <= delta   d
//                      delta (|d| - delta/2)  elsewhere            delta sign(d)
//   binary cross-entropy of the logit y, with weights w and p of its class (1 if none are given)
//                      w ((1 - t) y - (1 + (p - 1) t) log s)  w ((1 + (p - 1) t) s - p t)
//                      with s = 1 / (1 + e^-y)
// sign(0) and sign(NaN) are 0, as in torch. The cross-entropy is evaluated term by term as in torch, which
// determines the results for infinities.
//
// A rule returns the value for a vector of y and t, and writes the slope times `scale`, the factor of the
// loss's gradient. `at` is the position of the vector in (M, N).
#pragma once

#include "core/vec_math.h"
#include "ops/train_step/train_step.h"

namespace fastnn::FASTNN_ISA {

namespace {

// `size` where d > 0, -size where d < 0, else 0.
template <class T>
FASTNN_INLINE Vec<T> with_sign_of(Vec<T> d, T size) {
  return d > 0 ? splat(size) : (d < 0 ? splat(-size) : Vec<T>{});
}

template <class V>
FASTNN_INLINE V absolute(V d) {
  return d < 0 ? -d : d;
}

template <class T>
struct SquaredError {
  explicit SquaredError(double scale) : twice_scale_(static_cast<T>(2 * scale)) {}

  FASTNN_INLINE Vec<T> operator()(Vec<T> y, Vec<T> t, int64_t, Vec<T>& gradient) const {
    const Vec<T> d = y - t;
    gradient = d * twice_scale_;
    return d * d;
  }

 private:
  const T twice_scale_;
};

template <class T>
struct AbsoluteError {
  explicit AbsoluteError(double scale) : scale_(static_cast<T>(scale)) {}

  FASTNN_INLINE Vec<T> operator()(Vec<T> y, Vec<T> t, int64_t, Vec<T>& gradient) const {
    const Vec<T> d = y - t;
    gradient = with_sign_of<T>(d, scale_);
    return absolute(d);
  }

 private:
  const T scale_;
};

template <class T>
struct SmoothL1 {
  SmoothL1(double scale, double beta) : scale_(static_cast<T>(scale)), beta_(static_cast<T>(beta)) {}

  FASTNN_INLINE Vec<T> operator()(Vec<T> y, Vec<T> t, int64_t, Vec<T>& gradient) const {
    const Vec<T> d = y - t, a = absolute(d);
    const auto far = a >= beta_;  // not so for NaN, which the other branch keeps
    gradient = far ? with_sign_of<T>(d, scale_) : d * scale_ / beta_;
    return far ? a - T(0.5) * beta_ : a * a * T(0.5) / beta_;
  }

 private:
  const T scale_, beta_;
};

template <class T>
struct Huber {
  Huber(double scale, double delta) : scale_(static_cast<T>(scale)), delta_(static_cast<T>(delta)) {}

  FASTNN_INLINE Vec<T> operator()(Vec<T> y, Vec<T> t, int64_t, Vec<T>& gradient) const {
    const Vec<T> d = y - t, a = absolute(d);
    const auto far = a > delta_;  // not so for NaN, which the other branch keeps
    gradient = far ? with_sign_of<T>(d, scale_ * delta_) : d * scale_;
    return far ? (a - T(0.5) * delta_) * delta_ : a * a * T(0.5);
  }

 private:
  const T scale_, delta_;
};

template <class T>
struct BinaryCrossEntropy {
  BinaryCrossEntropy(double scale, const TrainStepArgs& args, int64_t classes)
      : scale_(static_cast<T>(scale)),
        classes_(classes),
        weight_(static_cast<const T*>(args.element_weight)),
        positive_weight_(static_cast<const T*>(args.positive_weight)) {}

  FASTNN_INLINE Vec<T> operator()(Vec<T> y, Vec<T> t, int64_t at, Vec<T>& gradient) const {
    const Vec<T> e = exp(y < 0 ? y : -y);
    const Vec<T> s = (y < 0 ? e : splat(T(1))) / (e + T(1));
    Vec<T> log_s = min(y, Vec<T>{}) - log1p(e), slope = s - t;
    if (positive_weight_) {
      const Vec<T> p = load(positive_weight_ + at % classes_), pt = p * t;
      log_s *= (p - T(1)) * t + T(1);
      slope = (pt + T(1) - t) * s - pt;
    }
    Vec<T> value = (T(1) - t) * y - log_s;
    if (weight_) {
      const Vec<T> w = load(weight_ + at % classes_);
      value *= w;
      slope *= w;
    }
    gradient = slope * scale_;
    return value;
  }

 private:
  const T scale_;
  const int64_t classes_;
  const T* const weight_;  // repeated: see TrainStepArgs
  const T* const positive_weight_;
};

// Calls visit(rule) with the rule of the loss, which is not the cross-entropy of classes.
template <class T, class Visit>
void with_loss_rule(const TrainStepArgs& args, double scale, int64_t classes, const Visit& visit) {
  switch (args.loss_kind) {
    case TrainStepLoss::cross_entropy:
      return;  // done by ops/cross_entropy
    case TrainStepLoss::squared_error:
      return visit(SquaredError<T>(scale));
    case TrainStepLoss::absolute_error:
      return visit(AbsoluteError<T>(scale));
    case TrainStepLoss::smooth_l1:
      return visit(SmoothL1<T>(scale, args.threshold));
    case TrainStepLoss::huber:
      return visit(Huber<T>(scale, args.threshold));
    case TrainStepLoss::binary_cross_entropy:
      return visit(BinaryCrossEntropy<T>(scale, args, classes));
  }
}

}  // namespace

}  // namespace fastnn::FASTNN_ISA
