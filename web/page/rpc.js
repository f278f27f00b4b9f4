// Calls from the page to its worker, and events that come back.

/** The page's end: call(method, ...args) resolves to what the worker's handler returns. */
export class Remote {
  #worker;
  #pending = new Map();
  #listeners = new Map();
  #calls = 0;

  /** @param {Worker} worker which calls serve(). */
  constructor(worker) {
    this.#worker = worker;
    worker.addEventListener("message", ({ data }) => this.#receive(data));
    worker.addEventListener("error", (event) => {
      const error = new Error(event.message || "the worker could not be started");
      for (const { reject } of this.#pending.values()) reject(error);
      this.#pending.clear();
    });
  }

  call(method, ...args) {
    const id = ++this.#calls;
    return new Promise((resolve, reject) => {
      this.#pending.set(id, { resolve, reject });
      this.#worker.postMessage({ id, method, args });
    });
  }

  /** Stop the worker; calls that are under way are never answered. */
  end() {
    this.#worker.terminate();
  }

  /** Call listener(detail) at each event of a name; one listener a name. */
  on(event, listener) {
    this.#listeners.set(event, listener);
  }

  #receive({ id, result, error, event, detail }) {
    if (event) {
      this.#listeners.get(event)?.(detail);
      return;
    }
    const call = this.#pending.get(id);
    this.#pending.delete(id);
    if (error === undefined) call?.resolve(result);
    else call?.reject(new Error(error));
  }
}

/**
 * The worker's end.
 *
 * @param {Promise<Record<string, Function>>} ready resolves to the handlers; if it is rejected, so is each call.
 */
export function serve(ready) {
  self.addEventListener("message", async ({ data: { id, method, args } }) => {
    try {
      const handlers = await ready;
      self.postMessage({ id, result: await handlers[method](...args) });
    } catch (error) {
      self.postMessage({ id, error: error.message });
    }
  });
}

/** Tell the page of something, from the worker. */
export function emit(event, detail) {
  self.postMessage({ event, detail });
}

const channel = new MessageChannel();
const waiting = [];
channel.port1.onmessage = () => waiting.shift()();

/** Resolves after the messages that have arrived; setTimeout would wait for 4 ms. */
export function turn() {
  return new Promise((resolve) => {
    waiting.push(resolve);
    channel.port2.postMessage(null);
  });
}
