// SPDX-License-Identifier: Apache-2.0
/**
 * How many events of each lane fall on each pixel, in time bounded by pixels rather than by events.
 *
 * Counts per lane are kept for blocks of 64 events and for blocks of 4096. A block whose first and
 * last event fall on the same pixel is added as a whole; only blocks across the boundary of a pixel
 * are looked into. A million events on 1280 pixels take at most 245 large blocks, 1280 × 64 small
 * ones and 1280 × 64 events, and typically far fewer.
 */

const SHIFTS = [6, 12];

export class Density {
  #store;
  #lanes;
  #next; // events before this index are counted
  #stride = 16; // lanes for which a block has room
  #base; // index of the first event that has blocks, a multiple of the largest block
  #levels = SHIFTS.map(() => new Uint16Array(0));

  constructor(store, lanes) {
    this.#store = store;
    this.#lanes = lanes;
    this.#restart();
  }

  /** Count the events that are new since the last call. */
  update() {
    const store = this.#store;
    this.#lanes.update();
    if (this.#lanes.list.length > this.#stride || store.first - this.#base > Math.max(store.count, 1 << 20)) {
      while (this.#stride < this.#lanes.list.length) this.#stride *= 2;
      this.#restart();
    }
    this.#reserve();
    const { ofType } = this.#lanes, stride = this.#stride, base = this.#base, [small, large] = this.#levels;
    store.columns(this.#next, store.end, (_times, types, start) => {
      for (let i = 0; i < types.length; i++) {
        const lane = ofType[types[i]], place = start + i - base;
        small[(place >> SHIFTS[0]) * stride + lane]++;
        large[(place >> SHIFTS[1]) * stride + lane]++;
      }
    });
    this.#next = store.end;
  }

  /**
   * Return the number of events per lane and pixel, `counts[lane * width + pixel]`, when `width`
   * pixels show the time from `fromNs` to `toNs`.
   */
  counts(fromNs, toNs, width) {
    const store = this.#store, counts = new Uint32Array(this.#lanes.list.length * width);
    const from = store.indexAt(fromNs), to = store.indexAt(toNs);
    const scale = width / (toNs - fromNs);
    const pixel = (ns) => Math.min(Math.max(Math.floor((ns - fromNs) * scale), 0), width - 1);
    this.#visit(SHIFTS.length - 1, from, to, { counts, width, pixel });
    return counts;
  }

  /** Add the events in `from` to `to - 1`, by the blocks of `level` where that is exact. */
  #visit(level, from, to, target) {
    if (from >= to) return;
    if (level < 0) return this.#addEvents(from, to, target);
    const size = 1 << SHIFTS[level], { pixel } = target;
    for (let block = from - ((from - this.#base) % size); block < to; block += size) {
      const first = Math.max(block, from), last = Math.min(block + size, to) - 1;
      const whole = first === block && last === block + size - 1;
      if (whole && pixel(this.#store.timeAt(first)) === pixel(this.#store.timeAt(last))) {
        this.#addBlock(level, block, pixel(this.#store.timeAt(first)), target);
      } else {
        this.#visit(level - 1, first, last + 1, target);
      }
    }
  }

  #addBlock(level, block, at, { counts, width }) {
    const start = ((block - this.#base) >> SHIFTS[level]) * this.#stride;
    for (let lane = 0; lane * width < counts.length; lane++) counts[lane * width + at] += this.#levels[level][start + lane];
  }

  #addEvents(from, to, { counts, width, pixel }) {
    const { ofType } = this.#lanes;
    this.#store.columns(from, to, (times, types) => {
      for (let i = 0; i < times.length; i++) counts[ofType[types[i]] * width + pixel(times[i])]++;
    });
  }

  /** Count all events anew: there are more lanes, or most of those counted are forgotten. */
  #restart() {
    const { first } = this.#store;
    this.#base = first - (first % (1 << SHIFTS.at(-1)));
    this.#next = first;
    this.#levels = SHIFTS.map(() => new Uint16Array(0));
  }

  #reserve() {
    this.#levels = this.#levels.map((level, i) => {
      const blocks = ((this.#store.end - this.#base) >> SHIFTS[i]) + 1;
      if (blocks * this.#stride <= level.length) return level;
      const grown = new Uint16Array(2 * blocks * this.#stride);
      grown.set(level);
      return grown;
    });
  }
}
