// The safetensors format: the length of a header (64 bits), the header in JSON, and the tensors' bytes.

const LENGTH_BYTES = 8;

/**
 * Write tensors of float32.
 *
 * @param {Record<string, {shape: number[], data: Float32Array}>} tensors as Mlp.stateDict() gives them.
 * @param {Record<string, string>} [metadata]
 * @returns {Uint8Array} the file.
 */
export function writeSafetensors(tensors, metadata = { format: "pt" }) {
  const header = { __metadata__: metadata };
  let end = 0;
  for (const [name, { shape, data }] of Object.entries(tensors)) {
    header[name] = { dtype: "F32", shape, data_offsets: [end, end + data.byteLength] };
    end += data.byteLength;
  }
  let text = new TextEncoder().encode(JSON.stringify(header));
  const padding = (LENGTH_BYTES - (text.length % LENGTH_BYTES)) % LENGTH_BYTES; // aligns the tensors
  text = Uint8Array.of(...text, ...new Array(padding).fill(0x20));
  const begin = LENGTH_BYTES + text.length;
  const file = new Uint8Array(begin + end);
  new DataView(file.buffer).setBigUint64(0, BigInt(text.length), true);
  file.set(text, LENGTH_BYTES);
  for (const [name, { data }] of Object.entries(tensors)) {
    file.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), begin + header[name].data_offsets[0]);
  }
  return file;
}

/**
 * Read a file of tensors of float32.
 *
 * @param {ArrayBuffer | Uint8Array} file
 * @returns {Record<string, {shape: number[], data: Float32Array}>} for Mlp.loadStateDict() or fromStateDict().
 * @throws {Error} the file is damaged, or a tensor has another dtype.
 */
export function readSafetensors(file) {
  const bytes = file instanceof Uint8Array ? file : new Uint8Array(file);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const length = bytes.length >= LENGTH_BYTES ? Number(view.getBigUint64(0, true)) : Infinity;
  if (LENGTH_BYTES + length > bytes.length) throw new Error("no safetensors file: it is shorter than its header");
  const begin = LENGTH_BYTES + length;
  let header;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(LENGTH_BYTES, begin)));
  } catch {
    throw new Error("no safetensors file: its header is no JSON");
  }
  const tensors = {};
  for (const [name, entry] of Object.entries(header ?? {})) {
    if (name !== "__metadata__") tensors[name] = readTensor(name, entry, bytes.subarray(begin));
  }
  return tensors;
}

function readTensor(name, entry, bytes) {
  const { dtype, shape, data_offsets: offsets } = entry ?? {};
  if (dtype !== "F32") throw new Error(`${name} has dtype ${dtype}, expected F32: save the model as float32`);
  const [from, to] = offsets ?? [];
  const values = Array.isArray(shape) ? shape.reduce((count, size) => count * size, 1) : NaN;
  if (!(from >= 0 && to <= bytes.length && to - from === 4 * values)) {
    throw new Error(`the safetensors file is damaged: ${name} of shape ${shape} lies at ${offsets}`);
  }
  return { shape, data: new Float32Array(bytes.slice(from, to).buffer) };
}
