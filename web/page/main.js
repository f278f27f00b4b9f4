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
  // Where module workers came later than SIMD, DecompressionStream did too.
  if (!hasSimd() || typeof DecompressionStream === "undefined") {
    byId("experiments").hidden = true;
    trouble(
      "This browser lacks SIMD in WebAssembly, module workers or DecompressionStream, which the page needs. " +
        "Chrome and Edge have them from version 91, Firefox from 114, Safari from 16.4.",
    );
    return;
  }
  const remote = new Remote(new Worker(new URL("worker.js", import.meta.url), { type: "module" }));
  await remote.call("loaded");
  startLine(remote);
  const data = await remote.call("describeData");
  const digits = new Digits(remote, data);
  const drawing = new Drawing(remote, data, () => digits.begin(false));
  digits.onchange = () => drawing.ask();
  startWeights(remote, data, digits);
}

start().catch((error) => trouble(`Something is missing: ${error.message}`));
