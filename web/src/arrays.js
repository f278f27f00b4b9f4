// Arguments that are arrays of numbers, as the typed arrays that the kernels take.

const isArray = (values) => Array.isArray(values) || (ArrayBuffer.isView(values) && !(values instanceof DataView));

/** Features, weights and other values: as Float32Array, bytes unchanged. */
export function asValues(name, values) {
  if (values instanceof Float32Array || values instanceof Uint8Array) return values;
  if (values instanceof Uint8ClampedArray) return new Uint8Array(values.buffer, values.byteOffset, values.length);
  if (!isArray(values)) throw new TypeError(`${name} must be an array of numbers`);
  return Float32Array.from(values);
}

/** The same, bytes included. */
export function asFloats(name, values) {
  const array = asValues(name, values);
  return array instanceof Float32Array ? array : Float32Array.from(array);
}

/** Class indices. */
export function asLabels(name, values) {
  if (values instanceof Int32Array) return values;
  if (!isArray(values)) throw new TypeError(`${name} must be an array of class indices`);
  const labels = Int32Array.from(values, Number);
  for (let i = 0; i < labels.length; ++i) {
    if (labels[i] !== Number(values[i])) {
      throw new RangeError(`${name}: ${values[i]} at ${i} is no class index`);
    }
  }
  return labels;
}

/** Check the length of an array. */
export function checkLength(name, array, expected) {
  if (array.length !== expected) throw new RangeError(`${name} has ${array.length} values, expected ${expected}`);
}

/** Check that a number is an integer of at least `least` that the kernels can count to. */
export function checkCount(name, value, least = 0) {
  if (!Number.isInteger(value) || value < least || value >= 2 ** 31) {
    throw new RangeError(`${name} must be an integer of at least ${least}, got ${value}`);
  }
}
