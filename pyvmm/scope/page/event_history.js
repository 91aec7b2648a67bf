// SPDX-License-Identifier: Apache-2.0
/**
 * Something that follows events one by one, after any event of a store.
 *
 * A history keeps copies at some distance from each other, so that going back follows a bounded
 * number of events. When there are too many copies, every second one is kept, and the distance grows.
 */

const CHECKPOINT_EVENTS = 20_000;
const MAX_CHECKPOINTS = 64;

/**
 * @template {{apply: (event: import("./store.js").ScopeEvent) => void, clone: () => T}} T
 */
export class EventHistory {
  #store;
  #make;
  #concerns;
  #follower;
  #next = 0; // the first event that `#follower` has not followed
  #checkpoints = [];
  #distance = CHECKPOINT_EVENTS;
  #since = 0; // events followed since the last checkpoint

  /**
   * `make` returns a follower that has followed nothing; it follows the events of types for which
   * `concerns` is true.
   * @param {import("./store.js").EventStore} store
   * @param {{make: () => T, concerns: (type: import("./types.js").EventType) => boolean}} rules
   */
  constructor(store, { make, concerns }) {
    this.#store = store;
    this.#make = make;
    this.#concerns = concerns;
    this.#follower = make();
  }

  /** Return the follower after the event at `index`; it is valid until the next call. @returns {T} */
  at(index) {
    if (index + 1 < this.#next) this.#goBack(index + 1);
    const wanted = this.#store.types.list.map(this.#concerns);
    this.#store.columns(this.#next, index + 1, (_times, types, start) => {
      for (let i = 0; i < types.length; i++) if (wanted[types[i]]) this.#follow(start + i);
    });
    this.#next = Math.max(this.#next, Math.min(index + 1, this.#store.end));
    return this.#follower;
  }

  #follow(index) {
    this.#follower.apply(this.#store.event(index));
    this.#next = index + 1;
    if (++this.#since < this.#distance) return;
    this.#since = 0;
    this.#checkpoints.push({ next: this.#next, follower: this.#follower.clone() });
    if (this.#checkpoints.length > MAX_CHECKPOINTS) {
      this.#checkpoints = this.#checkpoints.filter((_, i) => i % 2);
      this.#distance *= 2;
    }
  }

  #goBack(next) {
    while (this.#checkpoints.length && this.#checkpoints.at(-1).next > next) this.#checkpoints.pop();
    const last = this.#checkpoints.at(-1);
    this.#follower = last ? last.follower.clone() : this.#make();
    this.#next = last ? last.next : 0;
    this.#since = 0;
  }
}
