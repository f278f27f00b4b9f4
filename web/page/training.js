// The second experiment, in the worker: a network on images of digits, trained in slices between messages.

import { Dataset, Mlp, Random, readSafetensors, writeSafetensors } from "../fastnn.js";
import { turn } from "./rpc.js";

const CLASSES = 10;
const SLICE_MS = 16; // a message waits no longer
const REPORT_MS = 150;
const STEPS_PER_POINT = 20; // of the curve of the loss: their mean
const ROWS_AT_ONCE = 64; // of a test, which messages interrupt: the widest network takes tens of milliseconds for them
const ROWS_PER_TEST = 30_000; // of training between two tests, but not less than an epoch's end

/** A network, the data it is trained on, and where its training stands. */
export class Training {
  #fastnn;
  #data;
  #report;
  #train;
  #testParts;
  #model = null;
  #settings = null;
  #running = false;
  #rows = 0; // trained on so far
  #seconds = 0; // in training steps
  #random;
  #order; // of the rows in this epoch; null before it begins
  #at = 0; // rows of this epoch that are done
  #secondsPerStep; // as the last slice had it; Infinity before the first
  #untested = 0; // rows since the last test
  #gathered = []; // losses that are no point yet
  #points; // what the next report brings
  #tests;
  #lastReport = 0;
  #window; // rows and seconds since the last report

  /** @param {Function} report called now and then with {epoch, seconds, rate, points, tests, units, weights}. */
  constructor(fastnn, data, report) {
    this.#fastnn = fastnn;
    this.#data = data;
    this.#report = report;
    const features = data.side ** 2;
    const dataset = ({ images, labels }, begin, end) => {
      const x = images.subarray(begin * features, end * features);
      return new Dataset(fastnn, { x, features, labels: labels.subarray(begin, end), ...this.#scale() });
    };
    this.#train = dataset(data.train, 0, data.train.rows);
    this.#testParts = Array.from({ length: Math.ceil(data.test.rows / ROWS_AT_ONCE) }, (_, i) => {
      return dataset(data.test, i * ROWS_AT_ONCE, (i + 1) * ROWS_AT_ONCE);
    });
    delete data.train.images; // the copy in the module's memory is enough
  }

  // As kernels take it: bytes are divided by 255 first.
  #scale() {
    return { mean: this.#data.mean / 255, std: this.#data.std / 255 };
  }

  describe() {
    const { train, test, ...rest } = this.#data;
    return { ...rest, trainRows: train.rows, testRows: test.rows };
  }

  /** Begin with a new network: {hidden, optimizer, batchSize, seed}. */
  begin(settings) {
    const sizes = [this.#data.side ** 2, ...settings.hidden, CLASSES];
    const { optimizer, seed } = settings;
    this.#adopt(new Mlp(this.#fastnn, sizes, { loss: "cross_entropy", optimizer, seed }), settings, seed);
    return this.#facts();
  }

  #adopt(model, settings, seed = 0) {
    this.forget();
    this.#model = model;
    this.#settings = settings;
    this.#random = new Random(seed); // of the order of the rows
    this.#order = null;
    this.#secondsPerStep = Infinity;
    this.#rows = this.#seconds = this.#untested = 0;
    this.#gathered = [];
    this.#fresh();
  }

  /** End the training, and have no network until the next one is made or loaded. */
  forget() {
    this.#running = false;
    this.#model?.dispose();
    this.#model = null;
  }

  #fresh() {
    this.#points = [];
    this.#tests = [];
    this.#window = { rows: 0, seconds: 0 };
    this.#lastReport = performance.now();
  }

  /** Go on with another optimizer, learning rate or batch size; an optimizer of another name begins anew. */
  change(settings) {
    if (!this.#model) return;
    const [before, wanted] = [this.#model.optimizer, settings.optimizer];
    const same = before.name === wanted.name && (before.momentum ?? 0) === (wanted.momentum ?? 0);
    if (same) this.#model.lr = wanted.lr;
    else this.#model.setOptimizer(wanted);
    this.#settings = { ...this.#settings, ...settings };
    this.#secondsPerStep = Infinity; // a step on more rows takes longer
  }

  /**
   * Train for some epochs, or until pause(), begin() or forget(), or until the loss is no number any more.
   *
   * @returns {Promise<"done" | "paused" | "diverged">} why it ended.
   */
  async train(epochs) {
    const model = this.#model;
    const goal = (Math.floor(this.#rows / this.#train.rows) + epochs) * this.#train.rows;
    let diverged = false;
    this.#running = true;
    this.#fresh();
    while (this.#running && !diverged && this.#rows < goal) {
      diverged = !this.#slice();
      if (!diverged && this.#testIsDue()) diverged = !(await this.#takeTest(model));
      if (this.#model !== model) return "paused";
      if (performance.now() - this.#lastReport > REPORT_MS) this.#tell();
      await turn();
      if (this.#model !== model) return "paused";
    }
    this.#running = false;
    this.#tell();
    if (diverged) return "diverged";
    return this.#rows >= goal && !this.#testIsDue() ? "done" : "paused";
  }

  pause() {
    this.#running = false;
  }

  // Returns whether the loss is still a number: nothing more is learned once it is none.
  #slice() {
    if (!this.#order) {
      this.#order = this.#random.permutation(this.#train.rows);
      this.#at = 0;
    }
    const { batchSize } = this.#settings;
    const steps = Math.max(1, Math.round(SLICE_MS / 1000 / this.#secondsPerStep));
    const end = Math.min(this.#at + steps * batchSize, this.#order.length);
    const begin = performance.now();
    const losses = this.#model.trainRows(this.#train, this.#order.subarray(this.#at, end), batchSize);
    const seconds = (performance.now() - begin) / 1000;
    const rows = end - this.#at;
    this.#secondsPerStep = Math.max(seconds / losses.length, 1e-6);
    this.#seconds += seconds;
    this.#rows += rows;
    this.#window.seconds += seconds;
    this.#window.rows += rows;
    this.#untested += rows;
    this.#at = end;
    this.#gather(losses, batchSize);
    if (end === this.#order.length) this.#order = null;
    return losses.every(Number.isFinite);
  }

  #gather(losses, batchSize) {
    const after = (left) => (this.#rows - left * batchSize) / this.#train.rows;
    losses.forEach((loss, i) => {
      this.#gathered.push(loss);
      if (this.#gathered.length < STEPS_PER_POINT) return;
      this.#points.push([after(losses.length - 1 - i), mean(this.#gathered)]);
      this.#gathered = [];
    });
  }

  // After each epoch, and within long ones; what pause() has cut short is due again.
  #testIsDue() {
    return this.#untested > 0 && (!this.#order || this.#untested >= ROWS_PER_TEST);
  }

  // Returns whether the loss is a number, as far as is known.
  async #takeTest(model) {
    const test = await this.#evaluate(model, () => this.#running && this.#model === model);
    if (!test) return true;
    this.#untested = 0;
    this.#tests.push({ epoch: this.#rows / this.#train.rows, seconds: this.#seconds, accuracy: test.accuracy });
    return Number.isFinite(test.loss);
  }

  /**
   * The mean loss and the accuracy on the test images, measured between messages.
   *
   * @param {() => boolean} goesOn whether they are wanted still, after messages.
   * @returns {Promise<{loss: number, accuracy: number} | null>} null where they are not.
   */
  async #evaluate(model, goesOn = () => true) {
    let [losses, hits, begin] = [0, 0, performance.now()];
    for (const part of this.#testParts) {
      if (performance.now() - begin > SLICE_MS) {
        await turn();
        if (!goesOn()) return null;
        begin = performance.now();
      }
      const { loss, accuracy } = model.lossAndAccuracy(part);
      losses += loss * part.rows;
      hits += Math.round(accuracy * part.rows);
    }
    const { rows } = this.#data.test;
    return { loss: losses / rows, accuracy: hits / rows };
  }

  #tell() {
    const { rows, seconds } = this.#window;
    this.#report({
      epoch: this.#rows / this.#train.rows,
      seconds: this.#seconds,
      rate: seconds > 0 ? rows / seconds : null,
      points: this.#points,
      tests: this.#tests,
      ...this.#weights(),
    });
    this.#fresh();
  }

  #weights() {
    return { units: this.#model.sizes[1], weights: this.#model.weight(0) };
  }

  #facts() {
    const { sizes } = this.#model;
    const parameters = sizes.slice(1).reduce((count, size, i) => count + size * (sizes[i] + 1), 0);
    return { sizes, parameters, ...this.#weights() };
  }

  /** Probabilities of the classes for an image of bytes; null before there is a network. */
  predict(image) {
    return this.#model && this.#model.probabilities(image, this.#scale());
  }

  /** Some image of the test set, with its label. */
  testImage() {
    const { rows, images, labels } = this.#data.test;
    const row = Math.floor(Math.random() * rows);
    const pixels = this.#data.side ** 2;
    return { image: images.slice(row * pixels, (row + 1) * pixels), label: labels[row] };
  }

  /** The weights as a safetensors file. Its metadata says which data they are for, and how that is normalised. */
  save() {
    if (!this.#model) throw new Error("There is no network yet: train one above.");
    const { title, mean, std } = this.#data;
    const file = writeSafetensors(this.#model.stateDict(), {
      format: "pt",
      data: title,
      mean: `${mean}`,
      std: `${std}`,
    });
    return { file, sizes: this.#model.sizes };
  }

  /** Take the network of a safetensors file, to be trained by `settings`. Throws if it is not for these images. */
  async open(file, settings) {
    const { optimizer } = settings;
    const model = Mlp.fromStateDict(this.#fastnn, readSafetensors(file), { loss: "cross_entropy", optimizer });
    const pixels = this.#data.side ** 2;
    if (model.inputs !== pixels || model.outputs !== CLASSES) {
      model.dispose();
      throw new RangeError(
        `the network is ${model.sizes.join("-")}; here it must begin with ${pixels} and end with ${CLASSES}`,
      );
    }
    const { accuracy } = await this.#evaluate(model); // before it is taken up: nothing trains it yet
    this.#adopt(model, settings);
    return { ...this.#facts(), accuracy };
  }
}

function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
