// A training step of 784-128-10 by fastnn and by TensorFlow.js, and the time to an accuracy on MNIST by the page's
// worker.

import { Dataset, load, Mlp, Random } from "../fastnn.js";
import { Remote } from "../page/rpc.js";

const SIZES = [784, 128, 10];
const BATCH = 64;
const LR = 1e-3;
const LEAST_MS = 100; // of a sample: clocks of browsers tick every 0.1 ms
const CHECKED_STEPS = 20;
const TOLERANCE = 1e-3; // relative, of the losses after them

const { tf } = globalThis;

function problem() {
  const random = new Random(1);
  const x = new Float32Array(BATCH * SIZES[0]);
  random.fillUniform(x, 1);
  return { x, labels: Int32Array.from({ length: BATCH }, () => random.below(SIZES.at(-1))) };
}

// Each side is {step(), loss()}: one training step, and the loss of the batch now.
async function ours({ x, labels }) {
  const fastnn = await load();
  const model = new Mlp(fastnn, SIZES, { optimizer: { name: "adam", lr: LR } });
  const data = new Dataset(fastnn, { x, features: SIZES[0], labels });
  const order = Int32Array.from({ length: BATCH }, (_, i) => i);
  return {
    weights: [0, 1].map((layer) => [model.weight(layer), model.bias(layer)]),
    use: async () => {},
    step: () => model.trainRows(data, order, BATCH),
    loss: () => model.lossAndAccuracy(data).loss,
  };
}

async function tensorflow(backend, { x, labels }, weights) {
  const use = async () => {
    if (!(await tf.setBackend(backend))) throw new Error(`TensorFlow.js has no backend ${backend}`);
  };
  await use();
  const rows = tf.tensor2d(x, [BATCH, SIZES[0]]);
  const wanted = tf.tidy(() => tf.oneHot(tf.tensor1d(labels, "int32"), SIZES.at(-1)).toFloat());
  const layers = weights.map(([weight, bias], i) => ({
    kernel: tf.tidy(() => tf.variable(tf.tensor2d(weight, [SIZES[i + 1], SIZES[i]]).transpose())),
    bias: tf.variable(tf.tensor1d(bias)),
  }));
  const cost = () => {
    const [first, second] = layers;
    const hidden = tf.relu(tf.add(tf.matMul(rows, first.kernel), first.bias)); // no slower than tf.fused.matMul
    return tf.losses.softmaxCrossEntropy(wanted, tf.add(tf.matMul(hidden, second.kernel), second.bias));
  };
  const optimizer = tf.train.adam(LR, 0.9, 0.999, 1e-8);
  return { use, step: () => optimizer.minimize(cost), loss: () => tf.tidy(() => cost().dataSync()[0]) };
}

function sample(side) {
  side.step();
  const begin = performance.now();
  let [steps, end] = [0, begin];
  for (; end - begin < LEAST_MS; end = performance.now(), ++steps) side.step();
  return (end - begin) / 1000 / steps;
}

/** {versions, losses, samples}: seconds of a step of each side in each round; throws where the losses differ. */
export async function steps(rounds) {
  tf.wasm.setWasmPaths("npm/@tensorflow/tfjs-backend-wasm/dist/");
  tf.wasm.setThreadsCount(1);
  const content = problem();
  const fastnn = await ours(content);
  const sides = {
    fastnn,
    "TensorFlow.js wasm": await tensorflow("wasm", content, fastnn.weights),
    "TensorFlow.js cpu": await tensorflow("cpu", content, fastnn.weights),
  };
  const [losses, samples] = [{}, {}];
  for (const [name, side] of Object.entries(sides)) {
    await side.use();
    for (let i = 0; i < CHECKED_STEPS; ++i) side.step();
    losses[name] = side.loss();
    samples[name] = [];
    const error = Math.abs(losses[name] / losses.fastnn - 1);
    if (!(error < TOLERANCE))
      throw new Error(`the losses differ after ${CHECKED_STEPS} steps: ${JSON.stringify(losses)}`);
  }
  for (let round = 0; round < rounds; ++round) {
    for (const [name, side] of Object.entries(sides)) {
      await side.use();
      samples[name].push(sample(side));
    }
  }
  return { tfjs: tf.version.tfjs, losses, samples };
}

/** Training seconds of the page's worker to a test accuracy, with its defaults; null where it is not reached. */
export async function secondsTo(accuracy, seed) {
  const remote = new Remote(new Worker("../page/worker.js", { type: "module" }));
  const data = await remote.call("describeData");
  if (data.name !== "mnist") throw new Error("MNIST is not served");
  const reached = new Promise((resolve) => {
    remote.on("progress", ({ tests }) => {
      const test = tests.find((each) => each.accuracy >= accuracy);
      if (test) resolve(test);
    });
  });
  await remote.call("begin", { hidden: [128], optimizer: { name: "adam", lr: LR }, batchSize: BATCH, seed });
  const test = await Promise.race([reached, remote.call("train", 10).then(() => null)]);
  await remote.call("pause");
  remote.end();
  return test;
}

Object.assign(globalThis, { steps, secondsTo });
