// The first experiment: y = 2x - 1 from six points.

import { Chart } from "./chart.js";
import { byId } from "./dom.js";
import { EPOCHS, POINTS } from "./line_run.js";

const XS = [-2, 6];

/** Wire the section up. @param {Remote} remote */
export function startLine(remote) {
  const fit = new Chart(byId("line-fit"), { label: "Six points and the network's line", x: XS, y: [-5, 11] });
  const loss = new Chart(byId("line-loss"), { label: "Mean squared error by epoch", x: [0, EPOCHS], log: true });
  const [button, status, x, y] = ["line-train", "line-status", "line-x", "line-y"].map(byId);
  let attempts = 0;

  async function ask() {
    const value = x.valueAsNumber;
    const answer = Number.isFinite(value) ? await remote.call("askLine", value) : null;
    y.dataset.value = answer ?? "";
    y.textContent = answer === null ? "?" : answer.toFixed(3);
  }

  remote.on("line", ({ epoch, losses, weight, bias }) => {
    loss.add(
      "loss",
      losses.map((value, i) => [epoch - losses.length + i + 1, value]),
    );
    fit.set(
      "fit",
      XS.map((at) => [at, weight * at + bias]),
    );
    button.textContent = `Epoch ${epoch}`;
  });

  button.addEventListener("click", async () => {
    if (button.ariaDisabled === "true") return; // not `disabled`, which would take the focus away
    button.ariaDisabled = "true";
    loss.set("loss", []);
    status.textContent = "Training.";
    const { seconds, loss: last } = await remote.call("trainLine", attempts++);
    button.ariaDisabled = "false";
    button.textContent = "Train again";
    const took = `The ${EPOCHS} epochs took ${(1000 * seconds).toFixed(1)} ms, slowed down here to be seen.`;
    status.textContent = `Mean squared error ${last.toExponential(1)}. ${took}`;
    ask();
  });
  x.addEventListener("input", ask);
  byId("line-ask").addEventListener("submit", (event) => event.preventDefault());

  fit.set("fit", []);
  fit.set("dots", POINTS);
  status.textContent = "Ready.";
  button.disabled = false;
}
