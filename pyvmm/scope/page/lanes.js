// SPDX-License-Identifier: Apache-2.0
/**
 * The lanes of the timeline: for each device its driver, each of its queues and the device itself,
 * and one for the memory of the host. The lane of an event follows from its type.
 *
 * A lane keeps its number, while rows, which are what is drawn, are arranged anew when lanes are
 * added: devices with queues first, and one row for all of a device without queues.
 */

const DRIVER = new Set(["register_read", "register_write", "notified"]);
const HOST_MEMORY = new Set(["inflate", "deflate", "report", "hints", "migration.round"]);
const MAX_LANES = 250;

/**
 * @typedef {{id: number, device: string, role: "driver" | "queue" | "device" | "memory", queue: string}} Lane
 * @typedef {{label: string, group: string, color: string, lanes: number[]}} Row
 */

export class Lanes {
  /** @type {Lane[]} */
  list = [];
  /** Lane of each type, by its number. */
  ofType = [];
  /** @type {Row[]} */
  rows = [];
  #ids = new Map();
  #types;
  #devices;

  /** @param {import("./types.js").EventTypes} types @param {{name: string, queues: string[]}[]} devices */
  constructor(types, devices) {
    this.#types = types;
    this.#devices = devices;
  }

  /** Take new types in. */
  update() {
    const { list } = this.#types, before = this.list.length;
    for (let id = this.ofType.length; id < list.length; id++) this.ofType.push(this.#laneOf(list[id]));
    if (this.list.length > before) this.rows = this.#arrange();
  }

  /** Return the row that shows lane `id`. */
  rowOf(id) {
    return this.rows.findIndex((row) => row.lanes.includes(id));
  }

  #laneOf({ kind, device, queue }) {
    let role = "device";
    if (HOST_MEMORY.has(kind)) role = "memory";
    else if (DRIVER.has(kind)) role = "driver";
    else if (queue) role = "queue";
    const lane = { device: role === "memory" ? "" : device, role, queue: role === "queue" ? queue : "" };
    const key = JSON.stringify([lane.device, lane.role, lane.queue]);
    const known = this.#ids.get(key);
    if (known !== undefined) return known;
    if (this.list.length >= MAX_LANES) return MAX_LANES - 1;
    const id = this.list.length;
    this.#ids.set(key, id);
    this.list.push({ id, ...lane });
    return id;
  }

  #arrange() {
    const groups = Map.groupBy(this.list.filter(({ role }) => role !== "memory"), ({ device }) => device);
    const known = this.#devices.map(({ name }) => name);
    const rank = ([device, lanes]) =>
      (lanes.some(({ role }) => role === "queue") ? 0 : 1000) + (known.includes(device) ? known.indexOf(device) : 500);
    const rows = [...groups].sort((a, b) => rank(a) - rank(b)).flatMap(([device, lanes]) => this.#rowsOf(device, lanes));
    const memory = this.list.filter(({ role }) => role === "memory");
    if (memory.length) rows.push({ label: "host memory", group: "", color: "c4", lanes: memory.map(({ id }) => id) });
    return rows;
  }

  /** Return the rows of one device. */
  #rowsOf(device, lanes) {
    const group = device || "machine", queues = lanes.filter(({ role }) => role === "queue");
    if (!queues.length) return [{ label: "", group, color: "c3", lanes: lanes.map(({ id }) => id) }];
    const order = this.#devices.find(({ name }) => name === device)?.queues ?? [];
    queues.sort((a, b) => order.indexOf(a.queue) - order.indexOf(b.queue));
    const row = (label, color, of) => ({ label, group, color, lanes: of.map(({ id }) => id) });
    return [
      row("driver", "c1", lanes.filter(({ role }) => role === "driver")),
      ...queues.map((lane) => row(lane.queue, "c2", [lane])),
      row("device", "c3", lanes.filter(({ role }) => role === "device")),
    ].filter((each) => each.lanes.length);
  }
}
