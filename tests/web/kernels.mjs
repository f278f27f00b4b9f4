// Runs what tests ask for, a line of JSON after the other on standard input, and answers each with a line.
//
//   ["linear", args]                            an op
//   ["mlp", sizes, options, [[member, ...args], ...]]   what each call on a new Mlp returns
// Arrays of numbers are {"f32" | "i32" | "u8": base64 of their bytes} both ways, a Dataset {"dataset": content}. An
// exception is {"error": name, "message": text}.
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const library = await import(pathToFileURL(`${process.argv[2]}/fastnn.js`));
const fastnn = await library.load();
const CLASSES = { f32: Float32Array, i32: Int32Array, u8: Uint8Array };

function decode(value, datasets) {
  if (Array.isArray(value)) return value.map((item) => decode(item, datasets));
  if (typeof value !== "object" || value === null) return value;
  const [[key, content]] = Object.keys(value).length === 1 ? Object.entries(value) : [[null]];
  if (key in CLASSES) return new CLASSES[key](Uint8Array.from(Buffer.from(content, "base64")).buffer);
  if (key === "random") return new library.Random(content);
  if (key === "dataset") {
    const data = new library.Dataset(fastnn, decode(content, datasets));
    datasets.push(data);
    return data;
  }
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, decode(item, datasets)]));
}

function encode(value) {
  for (const [name, ArrayType] of Object.entries(CLASSES)) {
    if (!(value instanceof ArrayType)) continue;
    return { [name]: Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString("base64") };
  }
  if (typeof value === "number" && !Number.isFinite(value)) return { number: String(value) };
  if (Array.isArray(value)) return value.map(encode);
  if (typeof value !== "object" || value === null) return value ?? null;
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, encode(item)]));
}

const OPS = {
  linear: (args) => library.linear(fastnn, args),
  crossEntropy: (args) => library.crossEntropy(fastnn, args),
  adam: (args) => (library.adam(fastnn, args), args),
  sgd: (args) => (library.sgd(fastnn, args), args),
  writeSafetensors: library.writeSafetensors,
  readSafetensors: library.readSafetensors,
  allocate: (bytes) => fastnn.allocate(bytes),
  dataset: (content) => new library.Dataset(fastnn, content).dispose(),
  memoryBytes: () => fastnn.memoryBytes,
  mlp(sizes, options, calls) {
    const model = new library.Mlp(fastnn, sizes, options);
    try {
      return calls.map(([member, ...args]) => {
        if (member.startsWith("set ")) return void (model[member.slice(4)] = args[0]);
        return typeof model[member] === "function" ? model[member](...args) : model[member];
      });
    } finally {
      model.dispose();
    }
  },
  // The same again and again, whatever it throws: whether anything is used up.
  async repeat(count, op, ...args) {
    for (let i = 0; i < count; ++i) {
      try {
        await OPS[op](...args);
      } catch (error) {
        if (!(error instanceof library.OutOfMemoryError)) throw error;
      }
    }
  },
  // load() in a browser whose WebAssembly refuses the probe
  async withoutSimd() {
    const validate = WebAssembly.validate;
    WebAssembly.validate = () => false;
    try {
      await library.load();
    } finally {
      WebAssembly.validate = validate;
    }
  },
};

async function answer(line) {
  const datasets = [];
  try {
    const [op, ...args] = JSON.parse(line);
    return encode(await OPS[op](...decode(args, datasets)));
  } catch (error) {
    return { error: error.name, message: error.message };
  } finally {
    for (const data of datasets) data.dispose();
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  process.stdout.write(JSON.stringify(await answer(line)) + "\n");
}
