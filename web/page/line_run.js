// The first experiment, in the worker: a network of one weight and one bias on six points.

import { Dataset, Mlp } from "../fastnn.js";
import { turn } from "./rpc.js";

export const POINTS = [-1, 0, 1, 2, 3, 4].map((x) => [x, 2 * x - 1]);
export const EPOCHS = 500;
const EPOCHS_AT_ONCE = 5;
const MS_BETWEEN = 12; // all epochs together take a few milliseconds: too fast to see

/** Trains the line, and answers what it makes of an x. */
export class LineRun {
  #fastnn;
  #report;
  #data;
  #model = null;

  constructor(fastnn, report) {
    this.#fastnn = fastnn;
    this.#report = report;
    const [x, targets] = [0, 1].map((i) => Float32Array.from(POINTS, (point) => point[i]));
    this.#data = new Dataset(fastnn, { x, features: 1, targets });
  }

  /**
   * Train a new network; reports {epoch, losses, weight, bias} on the way.
   *
   * @returns {Promise<{seconds: number, loss: number}>} time in the kernels, the last loss.
   */
  async train(seed) {
    this.#model?.dispose();
    const model = new Mlp(this.#fastnn, [1, 1], { loss: "mse", seed, optimizer: { name: "sgd", lr: 0.01 } });
    this.#model = model;
    let milliseconds = 0;
    for (let epoch = 0; epoch < EPOCHS;) {
      const losses = [];
      const begin = performance.now();
      for (const end = epoch + EPOCHS_AT_ONCE; epoch < end; ++epoch)
        losses.push(model.trainEpoch(this.#data, { batchSize: POINTS.length }));
      milliseconds += performance.now() - begin;
      this.#report({ epoch, losses, weight: model.weight(0)[0], bias: model.bias(0)[0] });
      for (const until = performance.now() + MS_BETWEEN; performance.now() < until;) await turn();
    }
    return { seconds: milliseconds / 1000, loss: model.lossAndAccuracy(this.#data).loss };
  }

  /** The network's y at x; null before there is a network. */
  predict(x) {
    return this.#model && this.#model.predict(Float32Array.of(x))[0];
  }
}
