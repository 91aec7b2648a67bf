// SPDX-License-Identifier: Apache-2.0
/** The one event that all views show as selected. */

export class Selection {
  /** Its index in the store; -1 while none is selected. */
  index = -1;
  #store;
  #subscribers = new Set();

  constructor(store) {
    this.#store = store;
  }

  /** Return the selected event; null if there is none, or it is no longer kept. */
  get event() {
    const { first, end } = this.#store;
    return this.index >= first && this.index < end ? this.#store.event(this.index) : null;
  }

  /** Select the event at `index`, the nearest one that there is. */
  set(index) {
    const { first, end } = this.#store;
    this.index = end > first ? Math.min(Math.max(index, first), end - 1) : -1;
    for (const told of this.#subscribers) told();
  }

  /** Select the next event of a kind, or of types for which a function is true; -1 is back. */
  move(wanted, direction) {
    const { first, end } = this.#store;
    const from = this.index < 0 ? (direction > 0 ? first : end - 1) : this.index + direction;
    const found = this.#store.find(wanted, from, direction);
    if (found >= 0) this.set(found);
    return found >= 0;
  }

  /** Call `told` after another event was selected; return a function that ends this. */
  subscribe(told) {
    this.#subscribers.add(told);
    return () => this.#subscribers.delete(told);
  }
}
