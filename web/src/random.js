// Random numbers as torch's generator on the CPU gives them: a model begins with the same weights as
// torch.manual_seed(seed) and torch.nn.Linear make.

const SIZE = 624;
const MIDDLE = 397;

/** The Mersenne Twister MT19937 (Matsumoto and Nishimura 1998). */
export class Random {
  #state = new Uint32Array(SIZE);
  #next = SIZE;

  /** @param {number} [seed] an integer, of which the lower 32 bits are used. */
  constructor(seed = 0) {
    if (!Number.isInteger(seed)) throw new TypeError(`Random: seed must be an integer, got ${seed}`);
    const state = this.#state;
    state[0] = seed;
    for (let i = 1; i < SIZE; ++i) {
      const before = state[i - 1] ^ (state[i - 1] >>> 30);
      state[i] = Math.imul(1812433253, before) + i;
    }
  }

  #refill() {
    const state = this.#state;
    for (let i = 0; i < SIZE; ++i) {
      const bits = (state[i] & 0x80000000) | (state[(i + 1) % SIZE] & 0x7fffffff);
      state[i] = state[(i + MIDDLE) % SIZE] ^ (bits >>> 1) ^ (bits & 1 ? 0x9908b0df : 0);
    }
    this.#next = 0;
  }

  /** An integer from 0 to 2^32 - 1. */
  bits() {
    if (this.#next === SIZE) this.#refill();
    let y = this.#state[this.#next++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  /** Fill a Float32Array with numbers between -bound and bound, as `tensor.uniform_(-bound, bound)` does. */
  fillUniform(values, bound) {
    const from = Math.fround(-bound);
    const width = Math.fround(Math.fround(bound) - from);
    for (let i = 0; i < values.length; ++i) values[i] = ((this.bits() & 0xffffff) / 0x1000000) * width + from;
  }

  /** An integer from 0 to n - 1, each as likely. */
  below(n) {
    const most = 2 ** 32 - (2 ** 32 % n); // numbers from here on would favour the small ones
    for (;;) {
      const bits = this.bits();
      if (bits < most) return bits % n;
    }
  }

  /** The numbers from 0 to n - 1 in random order. */
  permutation(n) {
    const order = Int32Array.from({ length: n }, (_, i) => i);
    for (let i = n - 1; i > 0; --i) {
      const j = this.below(i + 1);
      [order[i], order[j]] = [order[j], order[i]];
    }
    return order;
  }
}
