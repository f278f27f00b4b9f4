// The second experiment: a network on images of digits, started, paused and continued.

import { Chart } from "./chart.js";
import { byId, grouped, percent } from "./dom.js";
import { Filters } from "./filters.js";
import { forgive, readEpochs, readHidden, readSettings, SettingError, usualRate } from "./settings.js";

const SMALL = 10_000; // images of a data set whose epoch is too short for ten of them to be enough
const EPOCHS_OF_SMALL = 60;

// As exact as steps of an axis need it, and whole steps of 1% without decimals.
const accuracyText = (accuracy, step) => percent(accuracy, step >= 0.00999 ? 0 : step > 0 ? 1 : 2);

/** The section: its form, its readings, and the network that the other sections ask. */
export class Digits {
  #remote;
  #data;
  #filters;
  #lossChart = new Chart(byId("loss-chart"), { label: "Training loss by epoch", log: true });
  #accuracyChart = new Chart(byId("accuracy-chart"), { label: "Test accuracy by epoch", format: accuracyText });
  #exists = false; // a network
  #attempts = 0; // networks that were begun: the seed of the next
  #trained = false; // it, here or where its file came from
  #starting = false; // a training, for which the worker makes ready
  #running = false;
  #accuracy = null;

  /** Called when the network has changed; the drawing is then asked again. */
  onchange = () => {};

  constructor(remote, data) {
    this.#remote = remote;
    this.#data = data;
    this.#filters = new Filters(data.side);
    this.#introduce();
    remote.on("progress", (progress) => this.#show(progress));
    byId("settings").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#guarded(() => (this.#running ? remote.call("pause") : this.#go()), true);
    });
    byId("settings").addEventListener("input", (event) => this.#correct(event.target));
    byId("settings").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !this.#running || !event.target.matches("input")) return;
      event.preventDefault(); // it would be the button's click, which pauses
      this.#guarded(() => this.#change());
    });
    byId("anew").addEventListener("click", () => this.#guarded(() => this.#anew()));
    byId("optimizer").addEventListener("change", () => {
      byId("lr").value = usualRate(byId("optimizer").value);
      this.#correct(byId("lr"));
      this.#guarded(() => this.#change());
    });
    for (const id of ["lr", "batch"]) byId(id).addEventListener("change", () => this.#guarded(() => this.#change()));
  }

  #introduce() {
    const { name, title, trainRows, testRows, side } = this.#data;
    const counts = `${grouped(trainRows)} images to train on and ${grouped(testRows)} to test with`;
    const where =
      name === "mnist"
        ? ""
        : " This is not MNIST, whose files are not beside this page; fastnn demo serves them where you have them.";
    byId("data").textContent = `Data: ${title}, ${counts}, ${side} × ${side} pixels each.${where}`;
    if (trainRows < SMALL) byId("epochs").value = EPOCHS_OF_SMALL;
    byId("go").disabled = false;
  }

  #say(text) {
    byId("digits-status").textContent = text;
  }

  // Says what goes wrong. The focus moves to a bad setting where asked: not from somebody who is in another field.
  async #guarded(body, focus = false) {
    try {
      await body();
    } catch (error) {
      if (!(error instanceof SettingError)) this.#say(error.message);
      else if (focus) error.field.focus();
    }
  }

  #correct(field) {
    forgive(field);
    if (this.#running && !byId("digits-status").textContent) this.#say("Training.");
  }

  async #go() {
    const epochs = readEpochs();
    if (this.#starting) return; // the second click of two
    this.#starting = true;
    try {
      if (!this.#exists) await this.begin();
      else await this.#change();
    } finally {
      this.#starting = false;
    }
    this.#state(true);
    this.#say("Training.");
    const end = await this.#remote.call("train", epochs).finally(() => this.#state(false));
    if (!this.#exists) return; // begun anew meanwhile
    if (end === "diverged") {
      this.#say("Diverged: the loss is no number any more. Start over with a lower learning rate.");
      return;
    }
    const accuracy = this.#accuracy === null ? "not measured yet" : percent(this.#accuracy);
    this.#say(`${end === "done" ? "Done" : "Paused"}: test accuracy ${accuracy}.`);
  }

  /** Whether there is a network that has learned something. */
  get trained() {
    return this.#trained;
  }

  /** Make a network with fresh weights, of what the form says; `pictured` as for adopt. */
  async begin(pictured = true) {
    const settings = { ...readSettings(), hidden: readHidden(), seed: this.#attempts };
    this.#attempts++;
    this.adopt(await this.#remote.call("begin", settings), pictured);
  }

  /**
   * Show a network that the worker has taken up; one whose accuracy is known was trained before. Its weights may be left to the first report of its training: their
   * pictures would move what is below them, the pad among it, on which somebody may be drawing.
   */
  adopt({ sizes, parameters, units, weights, accuracy = null }, pictured = true) {
    this.#exists = true;
    this.#clear();
    this.#accuracy = accuracy;
    if (accuracy !== null) byId("accuracy").textContent = percent(accuracy);
    if (pictured) this.#filters.show(units, weights);
    byId("hidden").value = sizes.slice(1, -1).join("-");
    byId("hidden").disabled = true;
    byId("hidden-note").textContent = `${sizes.join("-")}: ${grouped(parameters)} parameters. Start over to change it.`;
    byId("anew").disabled = false;
    this.#trained = accuracy !== null;
    this.#state(this.#running);
    this.onchange();
  }

  #clear() {
    this.#accuracy = null;
    for (const id of ["accuracy", "rate", "loss", "epoch", "seconds"]) byId(id).textContent = "–";
    this.#lossChart.set("loss", []);
    this.#accuracyChart.set("accuracy", []);
  }

  async #anew() {
    await this.#remote.call("forget");
    this.#exists = this.#trained = false;
    this.#clear();
    byId("hidden").disabled = false;
    byId("hidden-note").textContent = "Widths, such as 128 or 256-128; empty for none.";
    byId("anew").disabled = true;
    this.#state(this.#running);
    this.#say("The next start is with fresh weights.");
    byId("hidden").focus();
    this.onchange();
  }

  async #change() {
    if (this.#exists) await this.#remote.call("change", readSettings());
  }

  #state(running) {
    this.#running = running;
    byId("go").textContent = running ? "Pause" : this.#trained ? "Continue" : "Start";
  }

  #show({ epoch, seconds, rate, points, tests, units, weights }) {
    this.#trained = epoch > 0;
    for (const chart of [this.#lossChart, this.#accuracyChart]) chart.setX([0, epoch]);
    this.#lossChart.add("loss", points);
    this.#accuracyChart.add(
      "accuracy",
      tests.map((test) => [test.epoch, test.accuracy]),
    );
    if (points.length) byId("loss").textContent = points.at(-1)[1].toPrecision(3);
    if (tests.length) {
      this.#accuracy = tests.at(-1).accuracy;
      byId("accuracy").textContent = percent(this.#accuracy);
    }
    if (rate) byId("rate").textContent = grouped(rate);
    byId("epoch").textContent = epoch.toFixed(epoch < 10 ? 2 : 1);
    byId("seconds").textContent = `${seconds.toFixed(2)} s`;
    this.#filters.show(units, weights);
    this.onchange();
  }
}
