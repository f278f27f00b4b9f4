// The images that the network is trained on: MNIST where it is beside the page, else the bundled digits.

import { NoIdxError, readIdx } from "./idx.js";

const IMAGES = "images-idx3-ubyte.gz";
const LABELS = "labels-idx1-ubyte.gz";

// How a digit lies in an image: the longer side of its box, and whether the box or its centre of mass is in the middle.
const SETS = [
  { name: "mnist", title: "MNIST", box: 20, pen: 2.4, byMass: true },
  { name: "digits", title: "scikit-learn's digits", box: 7.5, pen: 1.4, byMass: false },
];

// Null where there is none: some hosts answer so by a page of HTML with status 200.
async function fetchIdx(url) {
  const response = await fetch(url);
  if (response.status === 404) return null;
  if (!response.ok) throw new Error(`${url} could not be loaded: HTTP status ${response.status}`);
  try {
    return await readIdx(await response.arrayBuffer());
  } catch (error) {
    if (error instanceof NoIdxError) return null;
    throw new Error(`${url}: ${error.message}`);
  }
}

async function fetchPart(folder, part) {
  const [images, labels] = await Promise.all([
    fetchIdx(new URL(`${part}-${IMAGES}`, folder)),
    fetchIdx(new URL(`${part}-${LABELS}`, folder)),
  ]);
  if (!images || !labels) return null;
  const [rows, height, width] = images.shape;
  if (height !== width || labels.shape[0] !== rows) {
    throw new Error(
      `${folder}: the ${part} images are ${images.shape.join(" x ")}, the labels ${labels.shape.join(" x ")}`,
    );
  }
  return { rows, side: width, images: images.values, labels: labels.values };
}

/**
 * Load the first data set that is there.
 *
 * @param {URL} base the folder that has mnist/ or digits/ in it.
 * @returns {Promise<object>} name, title, box, pen, byMass; side of an image; mean, std and white (the brightest
 *   pixel) of the training images; train and test: {rows, images, labels}.
 */
export async function loadData(base) {
  for (const set of SETS) {
    const folder = new URL(`${set.name}/`, base);
    const train = await fetchPart(folder, "train");
    const test = train && (await fetchPart(folder, "t10k"));
    if (test) return { ...set, ...statistics(train.images), side: train.side, train, test };
  }
  throw new Error(`there are no images in ${base}`);
}

/** Mean, standard deviation and largest value of bytes. */
export function statistics(bytes) {
  const counts = new Float64Array(256);
  for (const byte of bytes) ++counts[byte];
  const sum = (power) => counts.reduce((total, count, byte) => total + count * byte ** power, 0);
  const mean = sum(1) / bytes.length;
  const std = Math.sqrt(sum(2) / bytes.length - mean * mean);
  return { mean, std, white: counts.findLastIndex((count) => count > 0) };
}
