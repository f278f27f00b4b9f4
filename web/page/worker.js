// All computing of the page: the kernels, the data and the networks live here, so that the page never stalls.

import { load } from "../fastnn.js";
import { loadData } from "./data.js";
import { LineRun } from "./line_run.js";
import { emit, serve } from "./rpc.js";
import { Training } from "./training.js";

const kernels = load();
const training = (async () => {
  const [fastnn, data] = await Promise.all([kernels, loadData(new URL("../data/", import.meta.url))]);
  return new Training(fastnn, data, (progress) => emit("progress", progress));
})();
training.catch(() => {}); // each call that needs it says why

const line = kernels.then((fastnn) => new LineRun(fastnn, (progress) => emit("line", progress)));
const withLine =
  (body) =>
  async (...args) =>
    body(await line, ...args);
const withTraining =
  (body) =>
  async (...args) =>
    body(await training, ...args);

serve(
  kernels.then(() => ({
    loaded: () => true,
    trainLine: withLine((run, seed) => run.train(seed)),
    askLine: withLine((run, x) => run.predict(x)),
    describeData: withTraining((run) => run.describe()),
    begin: withTraining((run, settings) => run.begin(settings)),
    change: withTraining((run, settings) => run.change(settings)),
    train: withTraining((run, epochs) => run.train(epochs)),
    pause: withTraining((run) => run.pause()),
    forget: withTraining((run) => run.forget()),
    predict: withTraining((run, image) => run.predict(image)),
    testImage: withTraining((run) => run.testImage()),
    save: withTraining((run) => run.save()),
    open: withTraining((run, file, settings) => run.open(file, settings)),
  })),
);
