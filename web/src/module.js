// The WebAssembly module: how it is loaded, its memory, and calls of its functions (web/wasm/fastnn.h).

// A function that splats a number into a vector of bytes and counts their bits: it needs SIMD128, no more.
const SIMD_PROBE = Uint8Array.of(
  ...[0, 97, 115, 109, 1, 0, 0, 0], // magic, version
  ...[1, 5, 1, 96, 0, 1, 123], // type 0: () -> v128
  ...[3, 2, 1, 0], // function 0 has type 0
  ...[10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11], // i32.const 0, i8x16.splat, i8x16.popcnt, end
);

/** Whether this browser's WebAssembly has SIMD128: Chrome 91, Firefox 89 and Safari 16.4 were the first. */
export function hasSimd() {
  return typeof WebAssembly === "object" && WebAssembly.validate(SIMD_PROBE);
}

/** Memory has ended. What was allocated before the call is still there. */
export class OutOfMemoryError extends Error {
  constructor() {
    super("fastnn: out of memory");
    this.name = "OutOfMemoryError";
  }
}

const OK = 0;
const OUT_OF_RANGE = 2;

async function readBytes(url) {
  if (url.protocol === "file:") {
    const { readFile } = await import("node:fs/promises"); // Node's fetch takes no files
    return readFile(url);
  }
  const response = await fetch(url);
  if (!response.ok) throw new Error(`fastnn: ${url} could not be loaded: HTTP status ${response.status}`);
  return response.arrayBuffer();
}

/**
 * Load the kernels, in a page, a worker or Node.
 *
 * @param {string | URL | ArrayBuffer | Uint8Array | WebAssembly.Module} [source] address, bytes or the
 *   compiled module; by default fastnn.wasm beside this file.
 * @returns {Promise<Fastnn>} an instance with memory of its own.
 * @throws {Error} where SIMD128 is missing or the module cannot be loaded.
 */
export async function load(source = new URL("fastnn.wasm", import.meta.url)) {
  if (!hasSimd()) {
    throw new Error(
      "fastnn needs WebAssembly with SIMD, which this browser lacks: Chrome and Edge have it from version 91, " +
        "Firefox from 89, Safari from 16.4",
    );
  }
  const isAddress = typeof source === "string" || source instanceof URL;
  const code = isAddress ? await readBytes(new URL(source, import.meta.url)) : source;
  const module = code instanceof WebAssembly.Module ? code : await WebAssembly.compile(code);
  const instance = await WebAssembly.instantiate(module, {
    env: {
      out_of_memory() {
        throw new OutOfMemoryError();
      },
    },
  });
  return new Fastnn(instance);
}

/** One instance of the module. Addresses are byte offsets in its memory. */
export class Fastnn {
  #exports;

  constructor(instance) {
    this.#exports = instance.exports;
    this.#exports._initialize();
  }

  /** Bytes that the module's memory has grown to. */
  get memoryBytes() {
    return this.#exports.memory.buffer.byteLength;
  }

  /** Call a function and return what it returns. */
  call(name, ...args) {
    const { __stack_pointer: stack } = this.#exports;
    const before = stack.value;
    try {
      return this.#exports[name](...args);
    } catch (error) {
      stack.value = before; // an exception passes the module's functions by, which would set it back
      throw error;
    }
  }

  /** Call a function that returns an address. */
  address(name, ...args) {
    return this.call(name, ...args) >>> 0;
  }

  /** Call a function of type Status and throw what it refuses. */
  run(name, ...args) {
    const status = this.call(name, ...args);
    if (status !== OK) throw this.refusal(status);
  }

  /** The error of the last refusal. */
  refusal(status) {
    const from = this.address("fastnn_message");
    const bytes = new Uint8Array(this.#exports.memory.buffer);
    const message = new TextDecoder().decode(bytes.slice(from, bytes.indexOf(0, from)));
    return status === OUT_OF_RANGE ? new RangeError(message) : new Error(message);
  }

  allocate(bytes) {
    if (!(bytes < 2 ** 32)) throw new OutOfMemoryError();
    return this.address("fastnn_allocate", bytes);
  }

  free(address) {
    this.call("fastnn_free", address);
  }

  /**
   * The values at an address, as an array of the given class. It lies in the module's memory, and is of no use
   * after the next allocation or call, which may move that memory.
   */
  view(ArrayType, address, length) {
    return new ArrayType(this.#exports.memory.buffer, address, length);
  }

  /** Call body(scratch) with memory that is given back afterwards. */
  withScratch(body) {
    const scratch = new Scratch(this);
    try {
      return body(scratch);
    } finally {
      scratch.free();
    }
  }
}

class Scratch {
  #addresses = [];
  #fastnn;

  constructor(fastnn) {
    this.#fastnn = fastnn;
  }

  /** Room for some bytes. */
  room(bytes) {
    const address = this.#fastnn.allocate(bytes);
    this.#addresses.push(address);
    return address;
  }

  /** A copy of a typed array. */
  copy(array) {
    const address = this.room(array.byteLength);
    this.#fastnn.view(array.constructor, address, array.length).set(array);
    return address;
  }

  free() {
    for (const address of this.#addresses) this.#fastnn.free(address);
  }
}
