// IDX, the format of MNIST's files: 0, 0, element type, number of dimensions, each dimension (32 bits, big-endian),
// elements.

const UNSIGNED_BYTE = 8;

/** What was read does not begin as an IDX file of bytes does. */
export class NoIdxError extends Error {}

/**
 * Read an IDX file of bytes, plain or compressed by gzip, which its first bytes tell.
 *
 * @param {ArrayBuffer} file
 * @returns {Promise<{shape: number[], values: Uint8Array}>}
 * @throws {NoIdxError} it is something else; any other Error: it is damaged.
 */
export async function readIdx(file) {
  const bytes = new Uint8Array(await unpacked(file));
  if (bytes[0] !== 0 || bytes[1] !== 0 || bytes[2] !== UNSIGNED_BYTE) throw new NoIdxError("this is no IDX file of bytes");
  const dimensions = bytes[3];
  const view = new DataView(bytes.buffer);
  const shape = Array.from({ length: dimensions }, (_, i) => view.getUint32(4 + 4 * i));
  const values = bytes.subarray(4 + 4 * dimensions);
  const expected = shape.reduce((product, size) => product * size, 1);
  if (values.length !== expected) throw new Error(`${shape.join(" x ")} bytes are expected, ${values.length} came`);
  return { shape, values };
}

async function unpacked(file) {
  const [first, second] = new Uint8Array(file, 0, Math.min(2, file.byteLength));
  if (first !== 0x1f || second !== 0x8b) return file;
  const stream = new Blob([file]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}
