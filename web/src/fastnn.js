// fastnn's kernels in JavaScript: what a page, a worker or Node imports.
//
//     import { load, Mlp, Dataset, Random } from "./fastnn.js";
//     const fastnn = await load();                                     // fastnn.wasm beside this file
//     const data = new Dataset(fastnn, { x, features: 784, labels });  // x: Float32Array, or bytes
//     const model = new Mlp(fastnn, [784, 128, 10], { optimizer: { name: "adam", lr: 1e-3 } });
//     const random = new Random(0);
//     for (let epoch = 0; epoch < 5; ++epoch) model.trainEpoch(data, { batchSize: 64, random });
//     const { loss, accuracy } = model.lossAndAccuracy(data);
//
// Calls return when they are done. A worker that wants to hear messages takes an epoch in pieces:
// model.trainRows(data, order.subarray(begin, end), batchSize), order being random.permutation(data.rows).
// Memory is given back by dispose() of Mlp and Dataset alone.
export { Dataset } from "./dataset.js";
export { Mlp } from "./mlp.js";
export { hasSimd, load, OutOfMemoryError } from "./module.js";
export { adam, crossEntropy, linear, sgd } from "./ops.js";
export { Random } from "./random.js";
export { readSafetensors, writeSafetensors } from "./safetensors.js";
