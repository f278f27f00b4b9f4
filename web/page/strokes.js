// From strokes of a pen to an image as the data set has them. No canvas is read: the same strokes give the same bytes
// in every browser.

/**
 * Draw strokes into a small image: scaled so that the longer side of their box is `box` pixels, and put into the
 * middle by their box or by their centre of mass.
 *
 * @param {number[][][]} strokes each a list of points [x, y], of any scale.
 * @param {{side: number, box: number, pen: number, byMass: boolean, white: number}} style `pen` is a stroke's width.
 * @returns {Uint8Array} side * side pixels from 0 to white.
 */
export function rasterise(strokes, { side, box, pen, byMass, white }) {
  const points = strokes.flat();
  if (points.length === 0) return new Uint8Array(side * side);
  const [low, high] = [Math.min, Math.max].map((f) => [0, 1].map((i) => f(...points.map((point) => point[i]))));
  const extent = Math.max(high[0] - low[0], high[1] - low[1]);
  const scale = extent > 0 ? (box - pen) / extent : 0; // the ends of strokes reach out by half a pen
  const middle = [0, 1].map((i) => (low[i] + high[i]) / 2);
  const at = (centre) =>
    strokes.map((stroke) => stroke.map((p) => p.map((v, i) => (v - middle[i]) * scale + centre[i])));
  const centre = [side / 2, side / 2];
  const image = paint(at(centre), side, pen, white);
  if (!byMass) return image;
  const mass = centreOfMass(image, side);
  return paint(at(centre.map((c, i) => 2 * c - mass[i])), side, pen, white);
}

function centreOfMass(image, side) {
  let [sum, x, y] = [0, 0, 0];
  image.forEach((value, i) => {
    sum += value;
    x += value * ((i % side) + 0.5);
    y += value * (Math.floor(i / side) + 0.5);
  });
  return sum > 0 ? [x / sum, y / sum] : [side / 2, side / 2];
}

// A pixel is covered as far as its middle lies within the pen, with a soft edge of one pixel.
function paint(strokes, side, pen, white) {
  const image = new Uint8Array(side * side);
  for (let y = 0; y < side; ++y) {
    for (let x = 0; x < side; ++x) {
      const distance = Math.min(...strokes.map((stroke) => distanceTo(stroke, x + 0.5, y + 0.5)));
      const covered = Math.min(1, Math.max(0, pen / 2 + 0.5 - distance));
      image[y * side + x] = Math.round(white * covered);
    }
  }
  return image;
}

function distanceTo(stroke, x, y) {
  let least = Infinity;
  for (let i = 0; i < stroke.length; ++i) {
    const [ax, ay] = stroke[Math.max(i - 1, 0)];
    const [bx, by] = stroke[i];
    const [dx, dy] = [bx - ax, by - ay];
    const length = dx * dx + dy * dy;
    const along = length > 0 ? Math.min(1, Math.max(0, ((x - ax) * dx + (y - ay) * dy) / length)) : 0;
    least = Math.min(least, Math.hypot(x - ax - along * dx, y - ay - along * dy));
  }
  return least;
}
