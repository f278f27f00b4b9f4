// What the form of the second experiment says.

import { byId } from "./dom.js";

const STATUS = "digits-status"; // where the form says what is wrong
const MOST_LAYERS = 4;
const WIDEST = 2048;
const MOST_EPOCHS = 1000;
const OPTIMIZERS = {
  adam: { name: "adam", lr: 1e-3 },
  adamw: { name: "adamw", lr: 1e-3 },
  sgd: { name: "sgd", lr: 0.1 },
  momentum: { name: "sgd", momentum: 0.9, lr: 0.02 },
};

/** A setting that cannot be used: its text may be shown, and has been at `field`. */
export class SettingError extends Error {
  constructor(text, field) {
    super(text);
    this.field = field;
  }
}

/** Widths as "256-128" or "256, 128" says them; throws an Error that may be shown. */
export function parseHidden(text) {
  const widths = text
    .split(/[^0-9.]+/)
    .filter(Boolean)
    .map(Number);
  const fit = widths.every((width) => Number.isInteger(width) && width >= 1 && width <= WIDEST);
  if (!fit || widths.length > MOST_LAYERS || /[^0-9\s,;x-]/.test(text)) {
    throw new Error(`Hidden layers: at most ${MOST_LAYERS} widths from 1 to ${WIDEST}, as 256-128.`);
  }
  return widths;
}

/** The learning rate that suits an optimizer of the form. */
export function usualRate(optimizer) {
  return OPTIMIZERS[optimizer].lr;
}

/** How to train; throws a SettingError. */
export function readSettings() {
  const optimizer = OPTIMIZERS[byId("optimizer").value];
  const lr = checked("lr", () => positive("Learning rate", byId("lr").valueAsNumber));
  return { optimizer: { ...optimizer, lr }, batchSize: Number(byId("batch").value) };
}

/** The widths of a new network; a file's may be others than the form allows. Throws a SettingError. */
export function readHidden() {
  return checked("hidden", () => parseHidden(byId("hidden").value));
}

/** How many epochs to train; throws a SettingError. */
export function readEpochs() {
  return checked("epochs", () => {
    const epochs = byId("epochs").valueAsNumber;
    if (!(Number.isInteger(epochs) && epochs >= 1 && epochs <= MOST_EPOCHS)) {
      throw new Error(`Epochs: a whole number from 1 to ${MOST_EPOCHS}.`);
    }
    return epochs;
  });
}

function positive(name, value) {
  if (!(value > 0 && value < Infinity)) throw new Error(`${name}: a number greater than 0.`);
  return value;
}

function checked(id, read) {
  const field = byId(id);
  try {
    const value = read();
    forgive(field);
    return value;
  } catch (error) {
    blame(field, error.message);
    throw new SettingError(error.message, field);
  }
}

function blame(field, text) {
  for (const other of document.querySelectorAll("#settings [aria-invalid]")) forgive(other); // one text, one field
  field.setAttribute("aria-invalid", "true");
  field.setAttribute("aria-describedby", `${field.getAttribute("aria-describedby") ?? ""} ${STATUS}`.trim());
  byId(STATUS).textContent = text;
}

/** Take back what was said of a field, if anything: it is being corrected. */
export function forgive(field) {
  if (!field.hasAttribute("aria-invalid")) return;
  field.removeAttribute("aria-invalid");
  const others = field.getAttribute("aria-describedby").replace(STATUS, "").trim();
  if (others) field.setAttribute("aria-describedby", others);
  else field.removeAttribute("aria-describedby");
  byId(STATUS).textContent = "";
}
