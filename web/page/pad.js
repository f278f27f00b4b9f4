// A canvas to draw on with mouse, finger, pen or keyboard. It keeps strokes, not pixels.

const STEP = 1 / 28; // of an arrow key
const PEN = 1 / 14;

/** Strokes are lists of points [x, y] from 0 to 1. */
export class Pad {
  #canvas;
  #strokes = [];
  #pointer = null; // that draws: its id
  #pen = { at: [0.5, 0.2], down: false, shown: false }; // by keyboard

  /** Called after each change with the strokes. */
  onstroke = () => {};

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.#canvas = canvas;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || this.#pointer !== null) return; // a second finger draws nothing
      canvas.setPointerCapture(event.pointerId);
      this.#pointer = event.pointerId;
      this.#pen.shown = false;
      this.#begin(this.#place(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      if (event.pointerId !== this.#pointer) return;
      const events = event.getCoalescedEvents?.() ?? [];
      for (const each of events.length ? events : [event]) this.#extend(this.#place(each));
      this.#changed();
    });
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, ({ pointerId }) => {
        if (pointerId === this.#pointer) this.#pointer = null;
      });
    }
    canvas.addEventListener("keydown", (event) => {
      if (this.#key(event.key)) event.preventDefault();
    });
    canvas.addEventListener("blur", () => this.#lift());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw());
    this.#draw();
  }

  get strokes() {
    return this.#strokes;
  }

  clear() {
    this.#strokes = [];
    this.#pen = { at: [0.5, 0.2], down: false, shown: this.#pen.shown };
    this.#changed();
  }

  #place(event) {
    const box = this.#canvas.getBoundingClientRect();
    const place = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    return place.map((value) => Math.min(1, Math.max(0, value))); // the network sees what is shown
  }

  #begin(point) {
    this.#strokes.push([point]);
    this.#changed();
  }

  #extend(point) {
    const stroke = this.#strokes.at(-1);
    if (!stroke)
      this.#strokes.push([point]); // cleared during a stroke
    else if (Math.hypot(point[0] - stroke.at(-1)[0], point[1] - stroke.at(-1)[1]) > 0.005) stroke.push(point);
  }

  #key(key) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (key === "Escape") this.clear();
    else if (key === " ") this.#press();
    else if (moves[key]) this.#move(moves[key]);
    else return false;
    return true;
  }

  #press() {
    this.#pen.shown = true;
    this.#pen.down = !this.#pen.down;
    if (this.#pen.down) this.#begin([...this.#pen.at]);
    else this.#draw();
  }

  #move(by) {
    this.#pen.shown = true;
    this.#pen.at = this.#pen.at.map((value, i) => Math.min(1, Math.max(0, value + STEP * by[i])));
    if (!this.#pen.down) {
      this.#draw();
      return;
    }
    this.#extend([...this.#pen.at]);
    this.#changed();
  }

  #lift() {
    this.#pen.down = this.#pen.shown = false;
    this.#draw();
  }

  #changed() {
    this.#draw();
    this.onstroke(this.#strokes);
  }

  #draw() {
    const { width, height } = this.#canvas;
    const context = this.#canvas.getContext("2d");
    const style = getComputedStyle(this.#canvas);
    context.clearRect(0, 0, width, height);
    Object.assign(context, { lineWidth: PEN * width, lineCap: "round", lineJoin: "round", strokeStyle: style.color });
    for (const stroke of this.#strokes) {
      context.beginPath();
      for (const [x, y] of [stroke[0], ...stroke]) context.lineTo(x * width, y * height);
      context.stroke();
    }
    if (!this.#pen.shown) return;
    context.beginPath();
    context.arc(this.#pen.at[0] * width, this.#pen.at[1] * height, (PEN * width) / 2, 0, 2 * Math.PI);
    Object.assign(context, { lineWidth: 4, strokeStyle: style.getPropertyValue("--accent") });
    context.stroke();
  }
}
