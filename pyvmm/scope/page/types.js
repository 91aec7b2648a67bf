// SPDX-License-Identifier: Apache-2.0
/**
 * The types of the events in a store. A type is a kind together with its fields, the device and the
 * queue, so one small number per event holds all of them, and a filter looks at types, not at
 * events. Device and queue are found by the rules of pyvmm/trace/stream.py, so they work for any
 * device.
 */

import { DecodeError } from "./decode.js";

const MAX_TYPES = 1 << 16;

/**
 * @typedef {object} EventType
 * @property {number} id its place in `EventTypes.list`
 * @property {string} name name of the event, such as `balloon.status`
 * @property {string} kind name of its kind, such as `status`
 * @property {string} device name of the device, "" if it belongs to none
 * @property {string} queue name of the queue, "" if it belongs to none
 * @property {import("./decode.js").Field[]} fields
 */

export class EventTypes {
  /** @type {EventType[]} */
  list = [];
  #ids = new Map();

  /**
   * Return the number of the type. A guest can make up any number of names: beyond 65536 types, the
   * events of a shape share one type without device and queue.
   */
  intern(shape, device, queue) {
    const key = JSON.stringify([shape.name, shape.fields, device, queue]);
    const known = this.#ids.get(key);
    if (known !== undefined) return known;
    if (this.list.length >= MAX_TYPES - 256 && (device || queue)) return this.intern(shape, "", "");
    if (this.list.length >= MAX_TYPES) throw new DecodeError("too many kinds of events");
    const id = this.list.length;
    this.#ids.set(key, id);
    this.list.push({ id, name: shape.name, kind: kindOf(shape.name), device, queue, fields: shape.fields });
    return id;
  }
}

/** Return the device in the name of an event, "" if there is none. */
export function deviceInName(name) {
  const before = name.slice(0, Math.max(name.lastIndexOf("."), 0));
  return before === "migration" ? "" : before;
}

function kindOf(name) {
  const dot = name.lastIndexOf(".");
  return name.slice(0, Math.max(dot, 0)) === "migration" ? name : name.slice(dot + 1);
}
