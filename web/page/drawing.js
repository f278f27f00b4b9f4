// The third experiment: draw a digit, and see what the network makes of it.

import { byId, make, percent } from "./dom.js";
import { Pad } from "./pad.js";
import { rasterise } from "./strokes.js";

/** The section. */
export class Drawing {
  #remote;
  #data;
  #network;
  #pad = new Pad(byId("pad"));
  #image = null; // what the network sees
  #label = null; // of a test image
  #asking = false;
  #stale = false; // the answer shown
  #bars = Array.from({ length: 10 }, (_, digit) => bar(digit));

  /**
   * @param {Remote} remote
   * @param {object} data what the worker says of the images.
   * @param {Digits} network which is asked; one is begun where there is none yet.
   */
  constructor(remote, data, network) {
    const ready = () => network.begin(false);
    this.#network = network;
    this.#remote = remote;
    this.#data = data;
    byId("bars").append(...this.#bars.map(({ item }) => item));
    this.#see(new Uint8Array(data.side ** 2));
    this.#pad.onstroke = (strokes) => {
      this.#label = null;
      this.#image = strokes.length ? rasterise(strokes, data) : null;
      this.#see(this.#image ?? new Uint8Array(data.side ** 2));
      this.ask(ready);
    };
    byId("clear").addEventListener("click", () => this.#pad.clear());
    byId("sample").addEventListener("click", async () => {
      const { image, label } = await remote.call("testImage");
      this.#pad.clear();
      [this.#image, this.#label] = [image, label];
      this.#see(image);
      this.ask(ready);
    });
    byId("clear").disabled = byId("sample").disabled = false;
  }

  /** Ask the network again; `ready` makes one first where there is none. */
  async ask(ready = null) {
    this.#stale = true;
    if (this.#asking) return;
    this.#asking = true;
    try {
      while (this.#stale) {
        this.#stale = false; // until the image or the network changes while the answer comes
        const image = this.#image;
        let probabilities = image && (await this.#remote.call("predict", image));
        if (image && !probabilities && ready) {
          await ready();
          probabilities = await this.#remote.call("predict", image);
        }
        this.#show(probabilities);
      }
    } catch (error) {
      this.#say(error.message);
    } finally {
      this.#asking = false;
    }
  }

  #see(image) {
    const { side, white } = this.#data;
    const canvas = byId("seen");
    canvas.width = canvas.height = side;
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(side, side);
    image.forEach((value, i) => pixels.data.set([...Array(3).fill((255 * value) / white), 255], 4 * i));
    context.putImageData(pixels, 0, 0);
    canvas.setAttribute(
      "aria-label",
      `What the network sees: ${side} by ${side} pixels${this.#image ? "" : ", empty"}`,
    );
  }

  #show(probabilities) {
    if (probabilities?.some(Number.isNaN)) {
      this.#bars.forEach((bar) => bar.show(0, false));
      this.#say("The network's weights are no numbers any more: start over with a smaller learning rate.");
      return;
    }
    const best = probabilities ? probabilities.indexOf(Math.max(...probabilities)) : -1;
    this.#bars.forEach((bar, digit) => bar.show(probabilities?.[digit] ?? 0, digit === best));
    const verdict = probabilities ? `It is a ${best} (${percent(probabilities[best], 1)}).` : this.#invitation();
    const truth = this.#label === null ? "" : ` The label says ${this.#label}.`;
    const doubt = probabilities && !this.#network.trained ? " The network is untrained: this is a guess." : "";
    this.#say(verdict + truth + doubt, verdict.replace(/ \(.*\)/, "") + truth + doubt);
  }

  #invitation() {
    return this.#image ? "There is no network now: start a training, or draw on." : "Draw a digit.";
  }

  // What screen readers announce is without the probability, which changes all the time in a training.
  #say(text, announced = text) {
    byId("verdict").textContent = text;
    if (byId("verdict-said").textContent !== announced) byId("verdict-said").textContent = announced;
  }
}

function bar(digit) {
  const fill = make("span", { class: "fill" });
  const value = make("span", { class: "value" }, "");
  const item = make(
    "li",
    {},
    make("span", { class: "digit" }, `${digit}`),
    make("span", { class: "track" }, fill),
    value,
  );
  const show = (probability, best) => {
    item.dataset.value = probability;
    item.classList.toggle("best", best);
    fill.style.setProperty("--part", probability);
    value.textContent = percent(probability, 1);
  };
  show(0, false);
  return { item, show };
}
