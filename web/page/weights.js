// The fourth experiment: weights as a file for Python, and back.

import { byId, percent } from "./dom.js";
import { readSettings } from "./settings.js";

/**
 * Wire the section up.
 *
 * @param {Remote} remote
 * @param {object} data what the worker says of the images.
 * @param {Digits} digits which shows a network that is loaded.
 */
export function startWeights(remote, data, digits) {
  const status = byId("weights-status");

  async function guarded(body) {
    try {
      await body();
    } catch (error) {
      status.textContent = error.message;
    }
  }

  byId("save").addEventListener("click", () =>
    guarded(async () => {
      const { file, sizes } = await remote.call("save");
      const name = `mlp-${sizes.join("-")}.safetensors`;
      download(name, file);
      showSnippet(name, sizes, data);
      status.textContent = `Saved as ${name}.`;
    }),
  );
  byId("file").addEventListener("change", (event) =>
    guarded(async () => {
      const [file] = event.target.files;
      event.target.value = ""; // the same file may be chosen again
      if (!file) return;
      const network = await remote.call("open", await file.arrayBuffer(), readSettings());
      digits.adopt(network);
      showSnippet(file.name, network.sizes, data);
      status.textContent = `Loaded ${network.sizes.join("-")}: test accuracy ${percent(network.accuracy)}.`;
    }),
  );
  showSnippet("mlp-784-128-10.safetensors".replace("784", data.side ** 2), [data.side ** 2, 128, 10], data);
  byId("save").disabled = byId("file").disabled = false;
}

function download(name, bytes) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type: "application/octet-stream" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000); // the download has begun by then
}

function showSnippet(name, sizes, { mean, std }) {
  byId("snippet").textContent = `import fastnn
from safetensors.torch import load_file

model = fastnn.nn.MLP([${sizes.join(", ")}])
model.load_state_dict(load_file("${name}"))
logits = model((pixels.float() - ${mean.toFixed(4)}) / ${std.toFixed(4)})`;
}
