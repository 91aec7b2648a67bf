// SPDX-License-Identifier: Apache-2.0
/**
 * The guest's RAM by page state, in cells of many pages.
 *
 * A sample of a guest that runs comes from the server: for each cell, the number of pages in each of
 * `STATES`. A recording has events only: `RecordedMemory` finds in them the pages that the driver
 * has reported as free, and those that rings and buffers take, and the size of the balloon over
 * time. The pages in the balloon are named in the buffers, whose bytes are not recorded.
 */

import { INDIRECT } from "./queue_state.js";

export const PAGE_BYTES = 4096;

/** The states in the order in which a cell is filled with them, and their meaning. */
export const STATES = [
  { name: "balloon", color: "c2", says: "in the balloon: the guest does not use them" },
  { name: "unused", color: "c3", says: "unused, as the guest has told last" },
  { name: "huge", color: "c4", says: "resident in huge pages of the host" },
  { name: "resident", color: "c1", says: "resident in pages of 4 KiB" },
  { name: "untouched", color: "grid", says: "never touched, or discarded: the host keeps nothing" },
];

/** The states that events tell of. */
export const RECORDED_STATES = [
  { name: "reported", color: "c3", says: "reported as free by the driver" },
  { name: "buffers", color: "c1", says: "rings and buffers of virtqueues" },
  { name: "unknown", color: "grid", says: "events do not tell" },
];

/**
 * Return the pages of a cell by state, which add up to `pages`. A page can be in two counts, such as
 * unused and resident: it is shown as the one that says more.
 */
export function shares([, resident, balloon, unused, untouched, huge], pages) {
  let left = pages;
  const take = (count) => {
    const taken = Math.min(Math.max(count, 0), left);
    left -= taken;
    return taken;
  };
  const [inBalloon, never, told, large, small] = [balloon, untouched, unused, huge, resident].map(take);
  return { balloon: inBalloon, unused: told, huge: large, resident: small, untouched: never + left };
}

/**
 * Samples over time, at most `limit`: the first of each `#stride`, and the last. Beyond the limit the
 * stride is doubled, so what is kept is as dense at the beginning as at the end.
 * @template T
 */
export class Samples {
  /** @type {T[]} */
  list = [];
  #limit;
  #stride = 1;
  #count = 0;

  constructor(limit = 600) {
    this.#limit = limit;
  }

  add(sample) {
    if (this.#count && (this.#count - 1) % this.#stride) this.list.pop();
    this.list.push(sample);
    this.#count += 1;
    if (this.list.length > this.#limit) {
      this.list = this.list.filter((_, i) => i % 2 === 0 || i === this.list.length - 1);
      this.#stride *= 2;
    }
  }

  /** Return a copy that goes on by itself. */
  clone() {
    const copy = new Samples(this.#limit);
    copy.list = [...this.list];
    [copy.#stride, copy.#count] = [this.#stride, this.#count];
    return copy;
  }
}

/** The kinds of events that tell of memory. */
export const FOLLOWED = new Set(["queue_live", "descriptor", "report", "actual"]);

const RINGS = ["desc_gpa", "driver_gpa", "device_gpa"];

/** The facts about RAM in the events up to one of them. */
export class RecordedMemory {
  #balloon = new Samples();
  #cellBytes;
  #places = new Map(); // of each cell, by its address
  #reported; // pages of each cell
  #buffers;
  #walked = new Map(); // [address, bytes] of each buffer of the chain that a device has walked last

  /** `ram` has the address and the bytes of each range; `count` is about the number of cells. */
  constructor(ram, count = 2048) {
    const total = ram.reduce((sum, [, bytes]) => sum + bytes, 0);
    this.#cellBytes = Math.max(PAGE_BYTES, 2 ** Math.ceil(Math.log2(Math.max(total, 1) / count)));
    for (const [gpa, bytes] of ram) {
      for (let at = gpa; at < gpa + bytes; at += this.#cellBytes) this.#places.set(at, this.#places.size);
    }
    [this.#reported, this.#buffers] = [new Float64Array(this.#places.size), new Float64Array(this.#places.size)];
  }

  /** Return a copy that goes on by itself. */
  clone() {
    const copy = new RecordedMemory([]);
    copy.#balloon = this.#balloon.clone();
    copy.#cellBytes = this.#cellBytes;
    copy.#places = this.#places;
    copy.#reported = this.#reported.slice();
    copy.#buffers = this.#buffers.slice();
    copy.#walked = new Map([...this.#walked].map(([device, walked]) => [device, [...walked]]));
    return copy;
  }

  /** The size of the balloon over time: [milliseconds, bytes]. */
  get balloon() {
    return this.#balloon.list;
  }

  get cellBytes() {
    return this.#cellBytes;
  }

  /** Return the cells with the pages of each of `RECORDED_STATES`. */
  get cells() {
    const pages = this.#cellBytes / PAGE_BYTES;
    return [...this.#places].map(([gpa, place]) => {
      const reported = Math.min(this.#reported[place], pages), buffers = Math.min(this.#buffers[place], pages - reported);
      return { gpa, shares: { reported, buffers, unknown: pages - reported - buffers } };
    });
  }

  /** Follow an event of one of `FOLLOWED`. */
  apply({ kind, device, fields, timeNs }) {
    if (kind === "actual") this.#balloon.add([timeNs / 1e6, Number(fields.pages) * PAGE_BYTES]);
    if (kind === "queue_live") {
      for (const name of RINGS) this.#count(this.#buffers, Number(fields[name]), Number(fields.size) * 16);
    }
    if (kind === "descriptor") this.#walk(device, fields);
    if (kind === "report") this.#report(device);
  }

  #walk(device, fields) {
    if (fields.index === fields.head && !fields.table_gpa) this.#walked.set(device, []);
    if (Number(fields.flags) & INDIRECT) return;
    const buffer = [Number(fields.gpa), Number(fields.length)];
    this.#walked.get(device)?.push(buffer);
    this.#count(this.#buffers, ...buffer);
  }

  /** Count the chain that `device` has walked last as reported: the event of a report follows it. */
  #report(device) {
    for (const [gpa, bytes] of this.#walked.get(device) ?? []) {
      this.#count(this.#buffers, gpa, bytes, -1);
      this.#count(this.#reported, gpa, bytes);
    }
    this.#walked.delete(device);
  }

  /** Add the pages of `bytes` bytes at `gpa` to the `counts` of their cells, or take them off. */
  #count(counts, gpa, bytes, sign = 1) {
    let left = Math.min(bytes, this.#cellBytes * 1024);
    for (let at = gpa - (gpa % this.#cellBytes); left > 0; at += this.#cellBytes) {
      const part = Math.min(left, at + this.#cellBytes - Math.max(gpa, at)), place = this.#places.get(at);
      if (place !== undefined) counts[place] += sign * Math.ceil(part / PAGE_BYTES);
      left -= part;
    }
  }
}
