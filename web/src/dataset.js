// A data set in the module's memory, where batches are taken from it without a copy in JavaScript.

import { asFloats, asLabels, asValues, checkCount } from "./arrays.js";

const ROWS_BYTES = 20; // struct MlpRows: data, rows, bytes, scale, shift

/**
 * Rows of features, and the class or the values that belong to each.
 *
 * `new Dataset(fastnn, {x, features, labels})` or `{x, features, targets}`; neither for rows to predict.
 * Features are numbers, or bytes (a Uint8Array) of which the kernels make (byte / 255 - mean) / std as they
 * read them.
 */
export class Dataset {
  #fastnn;
  #addresses = [];

  /**
   * @param {Fastnn} fastnn
   * @param {object} content
   * @param {Float32Array | Uint8Array | number[]} content.x rows * features, row by row.
   * @param {number} content.features
   * @param {ArrayLike<number>} [content.labels] rows: class indices; -100 leaves a row out of the loss.
   * @param {ArrayLike<number>} [content.targets] rows * outputs: values to come near to.
   * @param {number} [content.mean] of bytes.
   * @param {number} [content.std] of bytes.
   */
  constructor(fastnn, { x, features, labels, targets, mean = 0, std = 1 }) {
    checkCount("features", features, 1);
    const values = asValues("x", x);
    const rows = values.length / features;
    if (!Number.isInteger(rows)) {
      throw new RangeError(`x has ${values.length} values, no multiple of ${features} features`);
    }
    if (labels && targets) throw new TypeError("a Dataset has either labels or targets");
    let wanted = null;
    if (labels) wanted = asLabels("labels", labels);
    else if (targets) wanted = asFloats("targets", targets);
    const perRow = wanted && rows ? wanted.length / rows : 0;
    if (labels && wanted.length !== rows) {
      throw new RangeError(`labels has length ${wanted.length}, expected ${rows}, one for each row`);
    }
    if (!Number.isInteger(perRow)) {
      throw new RangeError(`targets has ${wanted.length} values, no multiple of ${rows} rows`);
    }
    this.#fastnn = fastnn;
    this.rows = rows;
    this.features = features;
    /** "labels", "targets" or null. */
    this.kind = labels ? "labels" : targets ? "targets" : null;
    /** Values that each row's target has. */
    this.targetsPerRow = targets ? perRow : 0;
    try {
      const bytes = values instanceof Uint8Array;
      const data = this.#copy(values);
      this.targetAddress = wanted ? this.#copy(wanted) : 0;
      this.rowsAddress = this.#room(ROWS_BYTES);
      fastnn.view(Int32Array, this.rowsAddress, 3).set([data, rows, bytes ? 1 : 0]);
      fastnn.view(Float32Array, this.rowsAddress + 12, 2).set([1 / (255 * std), -mean / std]);
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  #room(bytes) {
    const address = this.#fastnn.allocate(bytes);
    this.#addresses.push(address);
    return address;
  }

  #copy(array) {
    const address = this.#room(array.byteLength);
    this.#fastnn.view(array.constructor, address, array.length).set(array);
    return address;
  }

  /** Give its memory back; it is of no use afterwards. */
  dispose() {
    for (const address of this.#addresses) this.#fastnn.free(address);
    this.#addresses = [];
    this.rowsAddress = this.targetAddress = 0;
  }
}
