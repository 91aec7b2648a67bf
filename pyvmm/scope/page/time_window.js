// SPDX-License-Identifier: Apache-2.0
/** The part of the time that the timeline shows: zoom, pan, and following a guest that runs. */

const LEAST_NS = 1000;

export class TimeWindow {
  from = 0;
  to = LEAST_NS;
  #store;
  #whole = true; // shows everything, new events included
  #follows = false; // its end is that of the events

  constructor(store) {
    this.#store = store;
  }

  get span() {
    return this.to - this.from;
  }

  /** Take the time of new events in, if everything or the end is shown. */
  update() {
    const { firstNs, lastNs } = this.#store;
    if (this.#whole) this.#set(firstNs, lastNs + Math.max((lastNs - firstNs) * 0.01, 1));
    else if (this.#follows) this.#set(lastNs - this.span, lastNs);
  }

  /** Show all events. */
  showAll() {
    this.#whole = true;
    this.update();
  }

  /** Show the time from `from` to `to`. */
  show(from, to) {
    const { firstNs, lastNs } = this.#store, end = lastNs + Math.max((lastNs - firstNs) * 0.01, 1);
    const span = Math.min(Math.max(to - from, LEAST_NS), Math.max(end - firstNs, LEAST_NS));
    const start = Math.min(Math.max((from + to - span) / 2, firstNs), Math.max(end - span, firstNs));
    this.#whole = span >= end - firstNs;
    this.#set(start, start + span);
    this.#follows = this.to >= lastNs;
  }

  /** Show `factor` times as much time; the time `atNs` keeps its place. */
  zoom(factor, atNs = (this.from + this.to) / 2) {
    const from = atNs - (atNs - this.from) * factor;
    this.show(from, from + this.span * factor);
  }

  /** Move by `ns`. */
  pan(ns) {
    this.show(this.from + ns, this.to + ns);
  }

  /** Move so that `ns` can be seen. */
  reveal(ns) {
    if (ns < this.from || ns > this.to) this.pan(ns - (this.from + this.to) / 2);
  }

  #set(from, to) {
    this.from = from;
    this.to = Math.max(to, from + LEAST_NS);
  }
}
