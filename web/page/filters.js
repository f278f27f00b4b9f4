// The weights of the first layer as pictures: what each hidden unit looks for in an image.

import { byId, eachFrame } from "./dom.js";

const MOST = 128; // units that are shown
const GAP = 2;
const ZERO = { light: [250, 249, 246], dark: [20, 23, 26] }; // as --page of style.css
const NEGATIVE = { light: [38, 84, 158], dark: [104, 162, 236] };
const POSITIVE = { light: [180, 66, 22], dark: [243, 156, 90] };

/** Draws them on the canvas of the section. */
export class Filters {
  #side;
  #units = 0;
  #weights = null;
  #canvas = byId("filters");
  #dark = matchMedia("(prefers-color-scheme: dark)");
  #redraw = eachFrame(() => this.#draw());

  /** @param {number} side of an image. */
  constructor(side) {
    this.#side = side;
    this.#dark.addEventListener("change", this.#redraw);
  }

  /** Show the weights of so many units, side * side numbers each. */
  show(units, weights) {
    this.#units = units;
    this.#weights = weights;
    this.#redraw();
  }

  #draw() {
    if (!this.#weights) return;
    const [side, shown] = [this.#side, Math.min(this.#units, MOST)];
    const columns = Math.min(shown, shown <= 10 ? 10 : 16);
    const rows = Math.ceil(shown / columns);
    const [width, height] = [columns, rows].map((count) => count * (side + GAP) - GAP);
    const canvas = this.#canvas;
    [canvas.width, canvas.height] = [width, height];
    canvas.style.setProperty("--columns", columns);
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height);
    const scale = this.#scale(shown);
    for (let unit = 0; unit < shown; ++unit) {
      const corner = [(unit % columns) * (side + GAP), Math.floor(unit / columns) * (side + GAP)];
      this.#paint(image, corner, this.#unit(unit), scale);
    }
    context.putImageData(image, 0, 0);
    const of = shown < this.#units ? `${shown} of ${this.#units}` : `${shown}`;
    const units = this.#units === 10 ? "outputs" : "hidden units";
    canvas.setAttribute("aria-label", `First-layer weights: a picture for each of ${of} ${units}`);
    byId("filters-caption").textContent =
      `First-layer weights of ${of} ${units}. Orange: ink there speaks for it; blue: against it.`;
  }

  #unit(unit) {
    const pixels = this.#side ** 2;
    return this.#weights.subarray(unit * pixels, (unit + 1) * pixels);
  }

  // The full colour is the largest weight of the unit in the middle: one that has learned nothing stays pale.
  #scale(shown) {
    const largest = Array.from({ length: shown }, (_, unit) =>
      this.#unit(unit).reduce((most, w) => Math.max(most, Math.abs(w)), 0),
    );
    return largest.sort((a, b) => a - b)[shown >> 1] || 1;
  }

  #paint({ data, width }, [left, top], weights, scale) {
    const scheme = this.#dark.matches ? "dark" : "light";
    weights.forEach((weight, i) => {
      const part = Math.min(1, Math.abs(weight) / scale);
      const [from, to] = [ZERO[scheme], (weight < 0 ? NEGATIVE : POSITIVE)[scheme]];
      const at = 4 * ((top + Math.floor(i / this.#side)) * width + left + (i % this.#side));
      for (let channel = 0; channel < 3; ++channel) {
        data[at + channel] = from[channel] + part * (to[channel] - from[channel]);
      }
      data[at + 3] = 255;
    });
  }
}
