// A small chart in SVG: lines and dots in a frame with two axes.

import { eachFrame, make } from "./dom.js";

const ASPECT = 0.7;
const HIGHEST = 250;
const FRAME = { left: 46, right: 10, top: 10, bottom: 26 };
const MOST_POINTS = 400; // that a line is drawn with

/** Shows series of points, and draws itself anew when they change. */
export class Chart {
  #series = new Map();
  #root;
  #options;
  #redraw = eachFrame(() => this.#draw());

  /**
   * @param {HTMLElement} place that the chart fills.
   * @param {object} options
   * @param {string} options.label what it shows, for those who do not see it; the last value follows.
   * @param {[number, number]} [options.x] range; by default that of the points.
   * @param {[number, number]} [options.y] likewise.
   * @param {boolean} [options.log] whether y is logarithmic.
   * @param {(y: number, step: number) => string} [options.format] text of a value, in steps of this size.
   */
  constructor(place, options) {
    this.#options = { format: shortest, ...options };
    this.#root = make("svg", { role: "img", class: "chart" });
    place.append(this.#root);
    new ResizeObserver(this.#redraw).observe(place); // which tells the first size too
  }

  /** Set the points [x, y] of a series: "dots" are shown as such, others as lines. */
  set(name, points) {
    this.#series.set(name, points);
    this.#redraw();
  }

  /** Add points to a series. */
  add(name, points) {
    this.set(name, [...(this.#series.get(name) ?? []), ...points]);
  }

  /** Set the range of x. */
  setX(range) {
    this.#options.x = range;
    this.#redraw();
  }

  #draw() {
    const { label, log, format } = this.#options;
    const width = this.#root.parentElement.clientWidth;
    const height = Math.round(Math.min(HIGHEST, width * ASPECT));
    this.#root.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const frame = { left: FRAME.left, right: width - FRAME.right, top: FRAME.top, bottom: height - FRAME.bottom };
    const series = [...this.#series].map(([name, all]) => [
      name,
      all.filter(([, y]) => Number.isFinite(y) && !(log && y <= 0)),
    ]);
    const points = series.flatMap(([, shown]) => shown);
    const x = axis(
      this.#options.x ??
        rangeOf(
          points.map((p) => p[0]),
          1,
        ),
      [frame.left, frame.right],
    );
    const range =
      this.#options.y ??
      (log ? decades : padded)(
        rangeOf(
          points.map((p) => p[1]),
          log ? 0.1 : 0,
        ),
      );
    const y = axis(log ? range.map(Math.log10) : range, [frame.bottom, frame.top], log);
    const last = points.at(-1);
    this.#root.setAttribute("aria-label", last ? `${label}; last ${format(last[1], 0)}` : `${label}; nothing yet`);
    const marks = series.map(([name, shown]) => (name === "dots" ? dots(shown, x, y) : line(name, shown, x, y, log)));
    this.#root.replaceChildren(...grid(x, y, frame, log, format), ...marks);
  }
}

function axis([from, to], [begin, end], log = false) {
  const place = (value) => begin + (((log ? Math.log10(value) : value) - from) / (to - from || 1)) * (end - begin);
  return { from, to, place };
}

function rangeOf(values, fallback) {
  if (values.length === 0) return [fallback ? fallback / 10 : 0, 1];
  const range = [Math.min, Math.max].map((f) => values.reduce((a, b) => f(a, b))); // too many to be arguments
  return range[0] === range[1] ? [range[0], range[0] + 1] : range;
}

const decades = ([from, to]) => [10 ** Math.floor(Math.log10(from)), 10 ** Math.ceil(Math.log10(to))];
const padded = ([from, to]) => [from - 0.05 * (to - from), to + 0.05 * (to - from)];

// Round numbers from one end to the other, at most `most` of them.
function ticks(from, to, most) {
  const rough = (to - from) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * (1 - 1e-9));
  const first = Math.ceil(from / step - 1e-9);
  return Array.from({ length: Math.max(0, Math.floor(to / step + 1e-9) - first + 1) }, (_, i) => (first + i) * step);
}

function grid(x, y, frame, log, format) {
  const values = log ? decadeTicks(y) : ticks(y.from, y.to, 5);
  const across = values.map((value) => {
    const at = y.place(value);
    return make(
      "g",
      {},
      make("line", { class: "rule", x1: frame.left, x2: frame.right, y1: at, y2: at }),
      make("text", { x: frame.left - 8, y: at + 4, "text-anchor": "end" }, format(value, values[1] - values[0])),
    );
  });
  const along = ticks(x.from, x.to, 6).map((value) =>
    make("text", { x: x.place(value), y: frame.bottom + 19, "text-anchor": "middle" }, shortest(value)),
  );
  return [...across, ...along];
}

function decadeTicks({ from, to }) {
  const step = Math.ceil((to - from) / 5);
  const count = Math.floor((to - from) / step + 1e-9) + 1;
  return Array.from({ length: count }, (_, i) => 10 ** (Math.round(from) + i * step));
}

function line(name, points, x, y, log) {
  const step = Math.ceil(points.length / MOST_POINTS);
  const drawn = [];
  for (let i = 0; i < points.length; i += step) drawn.push(average(points.slice(i, i + step), log));
  const path = drawn.map((p, i) => `${i ? "L" : "M"}${x.place(p[0]).toFixed(1)} ${y.place(p[1]).toFixed(1)}`).join("");
  return make("path", { class: `series ${name}`, d: path || "M0 0" });
}

function average(points, log) {
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const [px, py] = [points.map((p) => p[0]), points.map((p) => p[1])];
  return [mean(px), log ? 10 ** mean(py.map(Math.log10)) : mean(py)];
}

function dots(points, x, y) {
  return make(
    "g",
    { class: "dots" },
    ...points.map((p) => make("circle", { cx: x.place(p[0]), cy: y.place(p[1]), r: 4.5 })),
  );
}

/** A number in as few digits as tell it. */
export function shortest(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size < 1e-3 || size >= 1e5 ? value.toExponential(0).replace("+", "") : `${+value.toPrecision(3)}`;
}
