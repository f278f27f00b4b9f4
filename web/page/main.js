// Starts the page: the worker, and then each section when what it needs is there.

import { hasSimd } from "../fastnn.js";
import { Digits } from "./digits.js";
import { byId } from "./dom.js";
import { Drawing } from "./drawing.js";
import { startLine } from "./line.js";
import { Remote } from "./rpc.js";
import { startWeights } from "./weights.js";

function trouble(text) {
  const banner = byId("trouble");
  banner.textContent = text;
  banner.hidden = false;
}

async function start() {
  // The newest that the page uses in Chrome and in Firefox; module workers, which cannot be asked for, are as new.
  if (!hasSimd() || typeof DecompressionStream === "undefined" || !Array.prototype.findLastIndex) {
    byId("experiments").hidden = true;
    trouble(
      "This browser is too old, or its WebAssembly lacks SIMD. The page needs Chrome or Edge from version 97, " +
        "Firefox from 114, Safari from 16.4.",
    );
    return;
  }
  const remote = new Remote(new Worker(new URL("worker.js", import.meta.url), { type: "module" }));
  await remote.call("loaded");
  startLine(remote);
  const data = await remote.call("describeData");
  const digits = new Digits(remote, data);
  const drawing = new Drawing(remote, data, digits);
  digits.onchange = () => drawing.ask();
  startWeights(remote, data, digits);
}

start().catch((error) => trouble(`Something is missing: ${error.message}`));
