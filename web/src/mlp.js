// A multi-layer perceptron that is trained by the kernels.

import { asFloats, asLabels, asValues, checkCount, checkLength } from "./arrays.js";
import { Dataset } from "./dataset.js";
import { Random } from "./random.js";

const LOSSES = ["cross_entropy", "mse"]; // as enum MlpLoss counts them

/**
 * Linear layers with ReLU between them: `fastnn.nn.MLP(sizes)` of Python, in float32.
 *
 *     const model = new Mlp(await load(), [784, 128, 10], { optimizer: { name: "adam", lr: 1e-3 } });
 *     const loss = model.trainStep(x, labels);
 *
 * Optimizers have torch's names, defaults and formulas:
 *   { name: "adam" | "adamw", lr = 1e-3, betas = [0.9, 0.999], eps = 1e-8, weightDecay = 0 (adamw: 0.01) }
 *   { name: "sgd", lr = 1e-3, momentum = 0, dampening = 0, weightDecay = 0, nesterov = false }
 */
export class Mlp {
  #fastnn;
  #address;
  #optimizer;

  /**
   * @param {Fastnn} fastnn what load() gave.
   * @param {number[]} sizes features of the input, of each hidden layer and of the output.
   * @param {object} [options]
   * @param {"cross_entropy" | "mse"} [options.loss] the mean over a batch, of rows or of values.
   * @param {object} [options.optimizer] Adam by default.
   * @param {number} [options.seed] of the initial weights, those of torch.manual_seed(seed).
   * @throws {RangeError | TypeError | Error} sizes, loss or optimizer are not as described.
   */
  constructor(fastnn, sizes, { loss = "cross_entropy", optimizer = { name: "adam" }, seed = 0 } = {}) {
    sizes = Array.from(sizes);
    for (const size of sizes) checkCount("a size", size, 1);
    if (!LOSSES.includes(loss)) throw new RangeError(`loss must be one of ${LOSSES.join(", ")}, got ${loss}`);
    const random = new Random(seed);
    this.#fastnn = fastnn;
    this.#address = fastnn.withScratch((scratch) =>
      fastnn.address("fastnn_mlp_new", scratch.copy(Int32Array.from(sizes)), sizes.length, LOSSES.indexOf(loss)),
    );
    if (this.#address === 0) throw fastnn.refusal();
    this.sizes = Object.freeze(sizes);
    this.loss = loss;
    try {
      this.setOptimizer(optimizer);
      for (let layer = 0; layer < this.depth; ++layer) {
        // torch.nn.Linear's bounds, in the order of its arithmetic.
        const bound = Math.sqrt(3) * (Math.sqrt(2 / 6) / Math.sqrt(sizes[layer]));
        random.fillUniform(this.#parameter("weight", layer), bound);
        random.fillUniform(this.#parameter("bias", layer), 1 / Math.sqrt(sizes[layer]));
      }
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /** Number of linear layers. */
  get depth() {
    return this.sizes.length - 1;
  }

  /** Features of a row of the input. */
  get inputs() {
    return this.sizes[0];
  }

  /** Features of a row of the output. */
  get outputs() {
    return this.sizes[this.depth];
  }

  /** The optimizer with all its options. */
  get optimizer() {
    return { ...this.#optimizer };
  }

  /** Choose an optimizer, which begins anew: its moments are 0. Throws on unknown names and options. */
  setOptimizer({ name, ...options }) {
    const setting = settingOf(name, options);
    const flag = (value) => (value ? 1 : 0);
    const { lr, weightDecay } = setting;
    if (name === "sgd") {
      const { momentum, dampening, nesterov } = setting;
      const numbers = [lr, momentum, dampening, weightDecay];
      this.#fastnn.run("fastnn_mlp_use_sgd", this.#live(), ...numbers, flag(nesterov));
    } else {
      const numbers = [lr, ...setting.betas, setting.eps, weightDecay];
      this.#fastnn.run("fastnn_mlp_use_adam", this.#live(), ...numbers, flag(name === "adamw"));
    }
    this.#optimizer = setting;
  }

  /** The learning rate; it may be set at any time, and the optimizer goes on with it. */
  get lr() {
    return this.#optimizer.lr;
  }

  set lr(lr) {
    this.#fastnn.run("fastnn_mlp_set_lr", this.#live(), lr);
    this.#optimizer.lr = lr;
  }

  /**
   * Take a training step on a batch.
   *
   * @param {Float32Array | Uint8Array | number[]} x rows * inputs.
   * @param {ArrayLike<number>} y for the cross-entropy class indices, one a row, else rows * outputs values.
   * @param {{mean?: number, std?: number}} [bytes] as for a Dataset.
   * @returns {number} the loss before the step.
   */
  trainStep(x, y, bytes = {}) {
    const target = this.loss === "mse" ? { targets: y } : { labels: y };
    return this.#with({ x, ...target, ...bytes }, (data) => {
      const order = Int32Array.from({ length: data.rows }, (_, i) => i);
      return this.trainRows(data, order, Math.max(1, data.rows))[0];
    });
  }

  /**
   * Take a step on each `batchSize` of the rows of a Dataset that are named, in order; the last may be smaller.
   *
   * @param {Dataset} data
   * @param {Int32Array | number[]} rows
   * @param {number} batchSize
   * @returns {Float32Array} the loss before each step.
   * @throws {RangeError} a row or a class index is out of range; nothing has been changed.
   */
  trainRows(data, rows, batchSize) {
    this.#checkTarget(data);
    checkCount("batchSize", batchSize, 1);
    const named = asLabels("rows", rows);
    const steps = Math.ceil(named.length / batchSize);
    const fastnn = this.#fastnn;
    return fastnn.withScratch((scratch) => {
      const order = scratch.copy(named);
      const losses = scratch.room(4 * steps);
      const content = [data.rowsAddress, data.targetAddress];
      fastnn.run("fastnn_mlp_train", this.#live(), ...content, order, named.length, batchSize, losses);
      return fastnn.view(Float32Array, losses, steps).slice();
    });
  }

  /**
   * Train on every row of a Dataset once.
   *
   * @param {Dataset} data
   * @param {object} [options]
   * @param {number} [options.batchSize]
   * @param {Random | null} [options.random] shuffles the rows; null takes them as they lie.
   * @returns {number} the mean of the rows' losses, each before the step on its batch.
   */
  trainEpoch(data, { batchSize = 64, random = null } = {}) {
    const order = random ? random.permutation(data.rows) : Int32Array.from({ length: data.rows }, (_, i) => i);
    const losses = this.trainRows(data, order, batchSize);
    const rowsOf = (step) => Math.min(batchSize, data.rows - step * batchSize);
    return losses.reduce((sum, loss, step) => sum + loss * rowsOf(step), 0) / data.rows;
  }

  /**
   * The outputs for some rows: logits, or values.
   *
   * @param {Float32Array | Uint8Array | number[] | Dataset} x rows * inputs.
   * @param {{mean?: number, std?: number}} [bytes] as for a Dataset.
   * @returns {Float32Array} rows * outputs.
   */
  predict(x, bytes = {}) {
    return this.#with(x instanceof Dataset ? x : { x, ...bytes }, (data) => {
      this.#checkFeatures(data);
      const fastnn = this.#fastnn;
      const count = data.rows * this.outputs;
      return fastnn.withScratch((scratch) => {
        const y = scratch.room(4 * count);
        fastnn.run("fastnn_mlp_predict", this.#live(), data.rowsAddress, y);
        return fastnn.view(Float32Array, y, count).slice();
      });
    });
  }

  /** As predict, but the softmax of each row's outputs. */
  probabilities(x, bytes = {}) {
    const outputs = this.predict(x, bytes);
    for (let begin = 0; begin < outputs.length; begin += this.outputs) softmax(outputs.subarray(begin, begin + this.outputs));
    return outputs;
  }

  /**
   * The mean loss over a Dataset, and the share of its rows whose class has the largest output; null for "mse".
   *
   * @param {Dataset} data
   * @returns {{loss: number, accuracy: number | null}}
   */
  lossAndAccuracy(data) {
    this.#checkTarget(data);
    const fastnn = this.#fastnn;
    return fastnn.withScratch((scratch) => {
      const result = scratch.room(16);
      fastnn.run("fastnn_mlp_evaluate", this.#live(), data.rowsAddress, data.targetAddress, result);
      const [loss, accuracy] = fastnn.view(Float64Array, result, 2);
      return { loss, accuracy: this.loss === "mse" ? null : accuracy };
    });
  }

  /** A copy of the weight of a layer, outputs * inputs, row by row: a row is what one output looks at. */
  weight(layer) {
    return this.#parameter("weight", layer).slice();
  }

  /** A copy of the bias of a layer. */
  bias(layer) {
    return this.#parameter("bias", layer).slice();
  }

  /** Set the weight of a layer. */
  setWeight(layer, values) {
    this.#set("weight", layer, values);
  }

  /** Set the bias of a layer. */
  setBias(layer, values) {
    this.#set("bias", layer, values);
  }

  /**
   * The parameters under the names that `fastnn.nn.MLP(sizes).state_dict()` has: "0.weight", "0.bias", "2.weight" ...
   *
   * @returns {Record<string, {shape: number[], data: Float32Array}>}
   */
  stateDict() {
    const state = {};
    for (let layer = 0; layer < this.depth; ++layer) {
      const [inputs, outputs] = this.sizes.slice(layer, layer + 2);
      state[`${2 * layer}.weight`] = { shape: [outputs, inputs], data: this.weight(layer) };
      state[`${2 * layer}.bias`] = { shape: [outputs], data: this.bias(layer) };
    }
    return state;
  }

  /** Set all parameters to those of a state dict of the same sizes; throws, and changes nothing, if it differs. */
  loadStateDict(state) {
    const sizes = sizesOf(state);
    if (sizes.join() !== this.sizes.join()) {
      throw new RangeError(`the weights are those of an MLP of ${sizes.join("-")}, not ${this.sizes.join("-")}`);
    }
    for (let layer = 0; layer < this.depth; ++layer) {
      this.setWeight(layer, state[`${2 * layer}.weight`].data);
      this.setBias(layer, state[`${2 * layer}.bias`].data);
    }
  }

  /** An Mlp of the sizes and with the parameters of a state dict. */
  static fromStateDict(fastnn, state, options = {}) {
    const model = new Mlp(fastnn, sizesOf(state), options);
    model.loadStateDict(state);
    return model;
  }

  /** Give its memory back; it is of no use afterwards. */
  dispose() {
    this.#fastnn.call("fastnn_mlp_delete", this.#address);
    this.#address = 0;
  }

  #live() {
    if (this.#address === 0) throw new Error("the Mlp has been disposed of");
    return this.#address;
  }

  // The parameter itself: see Fastnn.view for how long that holds.
  #parameter(which, layer) {
    checkCount("layer", layer);
    if (layer >= this.depth) throw new RangeError(`layer ${layer} of ${this.depth}`);
    const [inputs, outputs] = this.sizes.slice(layer, layer + 2);
    const address = this.#fastnn.address(`fastnn_mlp_${which}`, this.#live(), layer);
    return this.#fastnn.view(Float32Array, address, which === "weight" ? inputs * outputs : outputs);
  }

  #set(which, layer, values) {
    const array = asFloats(which, values);
    const parameter = this.#parameter(which, layer);
    checkLength(which, array, parameter.length);
    parameter.set(array);
  }

  // Calls body with a Dataset, or one of the content given that lives as long as the call.
  #with(content, body) {
    if (content instanceof Dataset) return body(content);
    const data = new Dataset(this.#fastnn, { ...content, x: asValues("x", content.x), features: this.inputs });
    try {
      return body(data);
    } finally {
      data.dispose();
    }
  }

  #checkFeatures(data) {
    if (!(data instanceof Dataset)) throw new TypeError("expected a Dataset");
    if (data.rowsAddress === 0) throw new Error("the Dataset has been disposed of");
    if (data.features !== this.inputs) {
      throw new RangeError(`the rows have ${data.features} features, the Mlp takes ${this.inputs}`);
    }
  }

  #checkTarget(data) {
    this.#checkFeatures(data);
    const kind = this.loss === "mse" ? "targets" : "labels";
    if (data.kind !== kind) throw new TypeError(`the loss ${this.loss} needs a Dataset with ${kind}`);
    if (kind === "targets" && data.rows && data.targetsPerRow !== this.outputs) {
      throw new RangeError(`targets has ${data.targetsPerRow} values a row, the Mlp gives ${this.outputs}`);
    }
  }
}

// An optimizer's options with the defaults of torch.
function settingOf(name, options) {
  const adam = { lr: 1e-3, betas: [0.9, 0.999], eps: 1e-8, weightDecay: 0 };
  const defaults = {
    adam,
    adamw: { ...adam, weightDecay: 0.01 },
    sgd: { lr: 1e-3, momentum: 0, dampening: 0, weightDecay: 0, nesterov: false },
  };
  if (!Object.hasOwn(defaults, name)) {
    throw new RangeError(`optimizer must be one of ${Object.keys(defaults).join(", ")}, got ${name}`);
  }
  for (const option of Object.keys(options)) {
    if (!Object.hasOwn(defaults[name], option)) throw new TypeError(`${name} has no option ${option}`);
  }
  return { name, ...defaults[name], ...options };
}

// The sizes of the MLP that a state dict belongs to.
function sizesOf(state) {
  const layers = Object.keys(state).length / 2;
  if (layers === 0) throw new RangeError("no MLP: there are no tensors");
  const sizes = [];
  for (let layer = 0; layer < layers; ++layer) {
    const [weight, bias] = [state[`${2 * layer}.weight`], state[`${2 * layer}.bias`]];
    if (!weight || !bias) {
      throw new RangeError(`no MLP with ReLU: expected 0.weight, 0.bias, 2.weight ..., got ${Object.keys(state).join(", ")}`);
    }
    const [outputs, inputs] = weight.shape;
    const fits = weight.shape.length === 2 && bias.shape.length === 1 && bias.shape[0] === outputs;
    if (!fits || (layer > 0 && inputs !== sizes[layer])) {
      throw new RangeError(`layer ${layer} has a weight of shape ${weight.shape} and a bias of shape ${bias.shape}`);
    }
    if (layer === 0) sizes.push(inputs);
    sizes.push(outputs);
    checkLength(`${2 * layer}.weight`, weight.data, outputs * inputs);
    checkLength(`${2 * layer}.bias`, bias.data, outputs);
  }
  return sizes;
}

function softmax(values) {
  const largest = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const weights = Array.from(values, (value) => Math.exp(value - largest));
  const sum = weights.reduce((a, b) => a + b, 0);
  weights.forEach((weight, i) => (values[i] = weight / sum));
}
