// The kernels of single ops, on arrays of JavaScript: what each computes is in csrc/ops.

import { asFloats, asLabels, checkCount, checkLength } from "./arrays.js";

/**
 * act(x W^T + b), act being ReLU or nothing.
 *
 * @param {Fastnn} fastnn
 * @param {object} args
 * @param {Float32Array} args.x M * K
 * @param {Float32Array} args.weight N * K
 * @param {Float32Array} [args.bias] N
 * @param {number} args.m rows of x
 * @param {number} args.k features of the input
 * @param {number} args.n features of the output
 * @param {boolean} [args.relu]
 * @returns {Float32Array} M * N
 */
export function linear(fastnn, { x, weight, bias = null, m, k, n, relu = false }) {
  for (const [name, size] of Object.entries({ m, k, n })) checkCount(name, size);
  checkLength("x", x, m * k);
  checkLength("weight", weight, n * k);
  if (bias) checkLength("bias", bias, n);
  return fastnn.withScratch((scratch) => {
    const operands = [scratch.copy(asFloats("x", x)), m, k, scratch.copy(asFloats("weight", weight))];
    const b = bias ? scratch.copy(asFloats("bias", bias)) : 0;
    const y = scratch.room(4 * m * n);
    fastnn.run("fastnn_linear", ...operands, b, n, relu ? 1 : 0, y);
    return fastnn.view(Float32Array, y, m * n).slice();
  });
}

/**
 * Mean softmax cross-entropy of logits and class indices; the label -100 leaves a row out.
 *
 * @param {Fastnn} fastnn
 * @param {object} args
 * @param {Float32Array} args.logits rows * classes
 * @param {ArrayLike<number>} args.labels rows
 * @param {number} args.classes
 * @returns {{loss: number, gradient: Float32Array}} NaN where no row counts; rows * classes
 * @throws {RangeError} a label is no class.
 */
export function crossEntropy(fastnn, { logits, labels, classes }) {
  checkCount("classes", classes, 1);
  checkLength("logits", logits, labels.length * classes);
  return fastnn.withScratch((scratch) => {
    const input = scratch.copy(asFloats("logits", logits));
    const target = scratch.copy(asLabels("labels", labels));
    const [loss, gradient] = [scratch.room(4), scratch.room(4 * logits.length)];
    fastnn.run("fastnn_cross_entropy", input, labels.length, classes, target, loss, gradient);
    return {
      loss: fastnn.view(Float32Array, loss, 1)[0],
      gradient: fastnn.view(Float32Array, gradient, logits.length).slice(),
    };
  });
}

// Runs `name` on a parameter, its gradient and its states, and writes parameter and states back.
function update(fastnn, name, param, grad, states, ...numbers) {
  for (const state of states) if (state) checkLength("a state", state, param.length);
  checkLength("grad", grad, param.length);
  fastnn.withScratch((scratch) => {
    const written = [param, ...states];
    const [p, ...s] = written.map((array) => (array ? scratch.copy(array) : 0));
    fastnn.run(name, p, scratch.copy(grad), ...s, param.length, ...numbers);
    written.forEach((array, i) => array?.set(fastnn.view(Float32Array, [p, ...s][i], array.length)));
  });
}

/** One step of Adam, or with `decoupled` AdamW, on Float32Arrays, in place; `step` counts from 1. */
export function adam(
  fastnn,
  { param, grad, expAvg, expAvgSq, step, lr = 1e-3, betas = [0.9, 0.999], eps = 1e-8, weightDecay = 0, decoupled = false },
) {
  const numbers = [step, lr, ...betas, eps, weightDecay, decoupled ? 1 : 0];
  update(fastnn, "fastnn_adam", param, grad, [expAvg, expAvgSq], ...numbers);
}

/** One step of SGD on Float32Arrays, in place; `buffer` holds the momentum, nothing yet at the `first` step. */
export function sgd(
  fastnn,
  { param, grad, buffer = null, first = false, lr = 1e-3, momentum = 0, dampening = 0, weightDecay = 0, nesterov = false },
) {
  const numbers = [first ? 1 : 0, lr, momentum, dampening, weightDecay, nesterov ? 1 : 0];
  update(fastnn, "fastnn_sgd", param, grad, [buffer], ...numbers);
}
