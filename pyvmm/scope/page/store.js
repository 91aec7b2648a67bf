// SPDX-License-Identifier: Apache-2.0
/**
 * The events that the page knows: columns of typed arrays, in segments of consecutive events.
 *
 * A segment keeps the encoded fields as they came; three columns have the time, the type
 * (types.js) and the place of the fields of each event, and a fourth its number. They take 22 bytes an
 * event beside its encoded fields, which are decoded only when a view asks for them.
 *
 * An event keeps its index for as long as it is kept: those in `first` to `end - 1` are there. When
 * there are more than `limit` events, the oldest segments are forgotten. Small segments, as a live
 * guest sends them several times a second, are joined. Times are nanoseconds since the first event
 * that the store was given.
 */

import { DecodeError, Reader } from "./decode.js";
import { deviceInName, EventTypes } from "./types.js";

const JOIN_BELOW = 8192;
const DROPPED = { name: "dropped", fields: [{ name: "count", isText: false }] };

/**
 * @typedef {object} ScopeEvent
 * @property {number} index its place in the store
 * @property {number} seq its number in the stream
 * @property {number} timeNs nanoseconds since the first event
 * @property {string} kind
 * @property {string} device "" if none
 * @property {string} queue "" if none
 * @property {Record<string, number | bigint | string>} fields by name; without a prototype
 */

export class EventStore {
  /** Index of the first event that is kept, and that after the last one. */
  first = 0;
  end = 0;
  /** Events that are missing: they came too fast. */
  dropped = 0;
  types = new EventTypes();
  #limit;
  #segments = [];
  #originNs = null;
  #last = null; // the segment of the last look-up
  #subscribers = new Set();

  /** @param {number} limit the events that are kept at most, to the precision of a chunk */
  constructor(limit = 4_000_000) {
    this.#limit = limit;
  }

  /** The number of events that are kept. */
  get count() {
    return this.end - this.first;
  }

  /** CLOCK_MONOTONIC in nanoseconds at time 0; null while the store is empty. */
  get originNs() {
    return this.#originNs;
  }

  /** Time of the first and of the last event, in nanoseconds; 0 without events. */
  get firstNs() {
    return this.count ? this.timeAt(this.first) : 0;
  }

  get lastNs() {
    return this.count ? this.timeAt(this.end - 1) : 0;
  }

  /** Add the events of a chunk, which follow all others. @param {import("./decode.js").Chunk} chunk */
  add(chunk) {
    this.#originNs ??= chunk.baseNs;
    const segment = scan(chunk, this.types, Number(chunk.baseNs - this.#originNs), this.lastNs);
    if (!segment.count) return;
    const before = this.#segments.at(-1);
    segment.start = this.end;
    if (before && before.count + segment.count <= JOIN_BELOW && sameStrings(before, segment)) {
      this.#segments[this.#segments.length - 1] = joined(before, segment);
    } else {
      this.#segments.push(segment);
    }
    this.end += segment.count;
    this.dropped += chunk.dropped;
    while (this.count - this.#segments[0].count >= this.#limit) {
      this.first += this.#segments.shift().count;
    }
    this.#last = null;
    for (const told of this.#subscribers) told();
  }

  /** Call `told` after events were added; return a function that ends this. */
  subscribe(told) {
    this.#subscribers.add(told);
    return () => this.#subscribers.delete(told);
  }

  /** Return the time of the event at `index`, in nanoseconds. */
  timeAt(index) {
    const segment = this.#segmentOf(index);
    return segment.times[index - segment.start];
  }

  /** Return the type of the event at `index`. */
  typeAt(index) {
    const segment = this.#segmentOf(index);
    return this.types.list[segment.types[index - segment.start]];
  }

  /** Return the event at `index`. @returns {ScopeEvent} */
  event(index) {
    const segment = this.#segmentOf(index), place = index - segment.start;
    const type = this.types.list[segment.types[place]];
    const reader = new Reader(segment.payload, segment.offsets[place]);
    const fields = Object.create(null);
    for (const { name, isText } of type.fields) {
      fields[name] = isText ? reader.text(segment.strings) : reader.number();
    }
    const { kind, device, queue } = type;
    return { index, seq: segment.seqs[place], timeNs: segment.times[place], kind, device, queue, fields };
  }

  /**
   * Return the index of the next event from `from` on in `direction` (1 or -1) whose type is
   * `wanted`, a kind's name or a function of the type; -1 if there is none.
   */
  find(wanted, from, direction = 1) {
    const matches = typeof wanted === "function" ? wanted : (type) => type.kind === wanted;
    const found = this.types.list.map(matches);
    let index = Math.min(Math.max(from, this.first), this.end - 1);
    if (index !== from && (from < index) !== (direction > 0)) return -1;
    while (index >= this.first && index < this.end) {
      const { start, count, types } = this.#segmentOf(index);
      for (; index >= start && index < start + count; index += direction) {
        if (found[types[index - start]]) return index;
      }
    }
    return -1;
  }

  /** Return the index of the first event at `timeNs` or later; `end` if there is none. */
  indexAt(timeNs) {
    let low = this.first, high = this.end;
    while (low < high) {
      const middle = Math.floor((low + high) / 2);
      if (this.timeAt(middle) < timeNs) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** Call `each(times, types, start, count)` for the columns of all events in `from` to `to - 1`. */
  columns(from, to, each) {
    let index = Math.max(from, this.first);
    const end = Math.min(to, this.end);
    while (index < end) {
      const { start, count, times, types } = this.#segmentOf(index);
      const stop = Math.min(end, start + count);
      each(times.subarray(index - start, stop - start), types.subarray(index - start, stop - start), index);
      index = stop;
    }
  }

  #segmentOf(index) {
    const last = this.#last;
    if (last && index >= last.start && index < last.start + last.count) return last;
    if (!(index >= this.first && index < this.end)) throw new RangeError(`no event ${index}`);
    let low = 0, high = this.#segments.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.#segments[middle].start <= index) low = middle;
      else high = middle - 1;
    }
    return (this.#last = this.#segments[low]);
  }
}

/** Return the segment of a chunk whose times begin at `baseNs`; no event is before `earliestNs`. */
function scan(chunk, types, baseNs, earliestNs) {
  const { count, dropped, strings } = chunk, all = count + (dropped ? 1 : 0);
  const segment = {
    start: 0,
    count: all,
    seqs: new Float64Array(all),
    times: new Float64Array(all),
    types: new Uint16Array(all),
    offsets: new Uint32Array(all),
    strings,
    payload: chunk.payload,
  };
  const reader = new Reader(chunk.payload), kinds = new Map();
  for (const [number, shape] of chunk.shapes) kinds.set(number, new ShapeScanner(shape, types, strings));
  let ns = baseNs;
  for (let i = 0; i < count; i++) {
    const number = reader.number(), kind = kinds.get(number);
    if (!kind) throw new DecodeError(`kind ${number} is not in the table`);
    ns += Number(reader.number());
    segment.seqs[i] = chunk.firstSeq + i;
    segment.times[i] = ns > earliestNs ? ns : earliestNs;
    segment.offsets[i] = reader.at;
    segment.types[i] = kind.scan(reader);
  }
  if (reader.at !== chunk.payload.length) throw new DecodeError("a chunk holds more than its events");
  if (dropped) addDropped(segment, chunk, types, Math.max(ns, earliestNs));
  return segment;
}

/** Put the event that says how many are missing at the end of a segment. */
function addDropped(segment, { count, dropped, firstSeq, payload }, types, ns) {
  const bytes = [];
  for (let rest = dropped; ; rest = Math.floor(rest / 128)) {
    bytes.push((rest % 128) + (rest >= 128 ? 128 : 0));
    if (rest < 128) break;
  }
  segment.payload = concat(payload, Uint8Array.from(bytes), Uint8Array);
  segment.seqs[count] = firstSeq + count;
  segment.times[count] = ns;
  segment.types[count] = types.intern(DROPPED, "", "");
  segment.offsets[count] = payload.length;
}

/** Skips the fields of the events of one shape in a chunk, and finds their type. */
class ShapeScanner {
  #shape;
  #types;
  #strings;
  #inName;
  #places; // of the fields that say where the event belongs: device, table, queue
  #known = new Map();

  constructor(shape, types, strings) {
    const place = (name) => shape.fields.findLastIndex((field) => field.name === name);
    this.#shape = shape;
    this.#types = types;
    this.#strings = strings;
    this.#inName = deviceInName(shape.name);
    this.#places = [this.#inName ? -1 : place("device"), this.#inName ? -1 : place("table"), place("queue")];
  }

  /** Return the type of the event whose fields `reader` is at, and move it behind them. */
  scan(reader) {
    const { fields } = this.#shape, [device, table, queue] = this.#places, start = reader.at;
    let key = 0, exact = true; // the numbers of the strings that the type depends on
    for (let i = 0; i < fields.length; i++) {
      const value = reader.number(), { isText } = fields[i];
      if (i === device || i === table || i === queue) {
        if (typeof value === "number" && value < 65536 && (value || !isText)) key = key * 65536 + value;
        else exact = false;
      }
      if (isText && !value) {
        const length = Number(reader.number()); // before `at` is read
        reader.at += length;
      }
    }
    if (reader.at > reader.bytes.length) throw new DecodeError("a string is cut short");
    let type = exact ? this.#known.get(key) : undefined;
    if (type === undefined) {
      type = this.#resolve(new Reader(reader.bytes, start));
      if (exact) this.#known.set(key, type);
    }
    return type;
  }

  #resolve(reader) {
    const values = this.#shape.fields.map(({ isText }) =>
      isText ? reader.text(this.#strings) : String(reader.number()));
    const [device, table, queue] = this.#places.map((i) => values[i] ?? "");
    return this.#types.intern(this.#shape, this.#inName || device || table.split(".")[0], queue);
  }
}

function sameStrings(before, after) {
  for (const [number, text] of after.strings) {
    if ((before.strings.get(number) ?? text) !== text) return false;
  }
  return true;
}

function joined(before, after) {
  const shift = before.payload.length;
  return {
    start: before.start,
    count: before.count + after.count,
    seqs: concat(before.seqs, after.seqs, Float64Array),
    times: concat(before.times, after.times, Float64Array),
    types: concat(before.types, after.types, Uint16Array),
    offsets: concat(before.offsets, after.offsets.map((offset) => offset + shift), Uint32Array),
    strings: new Map([...before.strings, ...after.strings]),
    payload: concat(before.payload, after.payload, Uint8Array),
  };
}

function concat(first, second, Type) {
  const all = new Type(first.length + second.length);
  all.set(first);
  all.set(second, first.length);
  return all;
}
