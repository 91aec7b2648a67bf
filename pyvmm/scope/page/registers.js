// SPDX-License-Identifier: Apache-2.0
/**
 * The register view: configuration space, BARs, capabilities, MSI-X vectors, queues, and the fields
 * of the common and the device configuration, of one device (VIRTIO 1.2, 4.1.4).
 *
 * Of a guest that runs the server reads them without side effects; a value that differs from the one
 * before is marked. A recording has the last value of each register that was read or written before
 * the selected event. The last accesses stand first, and select their events.
 */

import { table } from "./buffer.js";
import { decodeBase64 } from "./decode.js";
import { element, onFrame } from "./elements.js";
import { EventHistory } from "./event_history.js";
import { count, hex, printable, size, time } from "./format.js";

const POLL_MS = 1000;
const RECENT = 8;
/** The tables that a driver works with come first, in this order. */
const VIRTIO_TABLES = [".config", ".common", ".notify", ".isr"];
const ACCESSES = { register_write: "written", register_read: "read" };

/** @param {HTMLElement} root @param {import("./main.js").Scope} scope */
export function create(root, scope) {
  return new RegisterView(root, scope);
}

class RegisterView {
  #scope;
  #select = element("select", {});
  #summary = element("span", { role: "status" });
  #body = element("div", { class: "register-body" });
  #device = null;
  #before = new Map(); // value of each register as it was read before
  #changed = new Map(); // when each register that has changed did so
  #histories = new Map(); // EventHistory of each device of a recording
  #timer = 0;
  #shown = false;
  #draw = onFrame(() => this.#shown && this.#refresh());

  constructor(root, scope) {
    this.#scope = scope;
    this.#select.addEventListener("change", () => scope.open("registers", this.#select.value));
    root.append(element("div", { class: "toolbar" }, element("label", {}, "device", this.#select), this.#summary), this.#body);
    scope.selection.subscribe(this.#draw);
    scope.store.subscribe(() => !scope.source.info.live && this.#draw());
  }

  show([device] = []) {
    this.#shown = true;
    if (device) this.#choose(device);
    this.#draw();
    if (this.#scope.source.info.live) this.#timer = setInterval(this.#draw, POLL_MS);
  }

  hide() {
    this.#shown = false;
    clearInterval(this.#timer);
  }

  #choose(device) {
    if (device !== this.#device) [this.#before, this.#changed] = [new Map(), new Map()];
    this.#device = device;
  }

  async #refresh() {
    const names = this.#names();
    if (this.#device === null && names.length) this.#choose(names[0]);
    if (names.length !== this.#select.options.length) {
      this.#select.replaceChildren(...names.map((value) => element("option", { value }, printable(value))));
    }
    if (this.#device === null) return void (this.#summary.textContent = "No device was seen yet");
    this.#select.value = this.#device;
    const device = this.#device, { source } = this.#scope;
    try {
      const parts = source.info.live ? this.#live(await source.get("registers", { device })) : this.#recorded(device);
      if (device === this.#device) this.#replace([this.#recent(device), ...parts]);
    } catch (error) {
      this.#summary.textContent = printable(error.message);
    }
  }

  /** Return the devices: those of the source, and those whose registers are in events. */
  #names() {
    const { source, store } = this.#scope;
    const found = new Set(source.info.devices.map(({ name }) => name));
    if (!source.info.live) for (const { kind, device } of store.types.list) if (Object.hasOwn(ACCESSES, kind)) found.add(device);
    return [...found];
  }

  #replace(parts) {
    const { scrollTop } = this.#body;
    this.#body.replaceChildren(element("div", { class: "cards" }, ...parts));
    this.#body.scrollTop = scrollTop;
  }

  /** Return the accesses before the selected event, the newest first, as a card. */
  #recent(device) {
    const { store, selection } = this.#scope, rows = [];
    const mine = (type) => Object.hasOwn(ACCESSES, type.kind) && type.device === device;
    let at = selection.index >= 0 ? selection.index : store.end - 1;
    while (rows.length < RECENT && at >= store.first && (at = store.find(mine, at, -1)) >= 0) {
      const event = store.event(at--);
      const row = element("tr", { tabIndex: 0 }, ...[time(event.timeNs), ACCESSES[event.kind],
        printable(`${event.fields.table}.${event.fields.register}`.replace(`${device}.`, "")), hex(event.fields.value)].map((text) => element("td", {}, text)));
      row.addEventListener("click", () => selection.set(event.index));
      row.addEventListener("keydown", ({ key }) => key === "Enter" && selection.set(event.index));
      rows.push(row);
    }
    const body = rows.length ? element("table", {}, element("tbody", {}, ...rows)) : element("p", { class: "hint" }, "No access is among the events.");
    return card("Last accesses", body);
  }

  /** Return the cards of an answer to `/api/registers`. */
  #live(answer) {
    this.#summary.textContent = "as they are now";
    const { features } = answer, { first, others } = ordered(grouped(answer.registers));
    const registerCards = (tables) => tables.map(([name, registers]) => this.#registerCard(name, registers));
    return [
      ...registerCards(first),
      ...(features ? [card("Features", table(["", "bits", "names"], ["offered", "accepted"].map((each) =>
        [each, hex(features[each]), printable(features[`${each}-names`]).replaceAll("|", " ")])))] : []),
      card("Queues", table(["", "name", "size", "live", "desc", "driver", "device", "next", "used"], answer.queues.map((each) =>
        [String(each.index), printable(each.name), String(each.size), each.live ? "yes" : "no", hex(each.desc), hex(each.driver),
          hex(each.device), String(each["next-avail"]), String(each["used-idx"])]))),
      card("BARs", table(["BAR", "address", "size", "decoded"], answer.bars.map((each) =>
        [String(each.index), hex(each.address), size(each.size), each.decoded ? "yes" : "no"]))),
      card("MSI-X vectors", table(["vector", "address", "data", "masked", "pending"], answer.msix.map((each) =>
        [String(each.vector), hex(each.address), hex(each.data), each.masked ? "yes" : "no", each.pending ? "yes" : "no"]))),
      ...registerCards(others),
      card("Capabilities", table(["offset", "name", "fields"], answer.capabilities.map((each) =>
        [hex(each.offset), printable(each.name), Object.entries(each.fields).map(([key, value]) => `${key} ${hex(value)}`).join(", ")]))),
      card("Configuration space", configDump(decodeBase64(answer.config))),
    ];
  }

  /** Return the card of a register table, in which values that changed last are marked. */
  #registerCard(name, registers) {
    const isConfig = name.endsWith(".config");
    const rows = registers.map(({ register, offset, size: bytes, value }) => {
      const key = `${name}.${register}`, known = this.#before.get(key);
      if (known !== undefined && known !== value) this.#changed.set(key, performance.now());
      this.#before.set(key, value);
      const since = this.#changed.has(key) ? `changed ${((performance.now() - this.#changed.get(key)) / 1e3).toFixed(0)} s ago` : "";
      return registerRow({ register, offset: hex(offset), bytes: String(bytes), value: hex(value), ...(isConfig && { decimal: count(value) }), since }, since && isRecent(this.#changed, key));
    });
    return card(printable(name), registerTable(["register", "offset", "bytes", "value", ...(isConfig ? ["decimal"] : []), ""], rows));
  }

  /** Return a card for each register table with the last values up to the selected event. */
  #recorded(device) {
    const { store, selection } = this.#scope, last = selection.index >= 0 ? selection.index : store.end - 1;
    this.#summary.textContent = "from events: the last value that was read or written before the selected event";
    if (!this.#histories.has(device)) {
      const concerns = (type) => Object.hasOwn(ACCESSES, type.kind) && type.device === device;
      this.#histories.set(device, new EventHistory(store, { make: () => new LastValues(), concerns }));
    }
    const { values } = this.#histories.get(device).at(last);
    const { first, others } = ordered(grouped([...values.values()]));
    return [...first, ...others].map(([name, registers]) => card(printable(name),
      registerTable(["register", "value", "", "at"], registers.map(({ register, event }) => registerRow({ register,
        value: hex(event.fields.value), how: ACCESSES[event.kind], at: time(event.timeNs) }, event.index === last)))));
  }
}

/** Follows the accesses to the registers of a device, and has the last one to each. */
class LastValues {
  constructor(values = new Map()) {
    this.values = values;
  }

  apply(event) {
    const { table: name, register } = event.fields;
    this.values.set(`${name}.${register}`, { table: String(name), register: String(register), event });
  }

  clone() {
    return new LastValues(new Map(this.values));
  }
}

function isRecent(changed, key) {
  const newest = Math.max(...changed.values());
  return newest - changed.get(key) < 50;
}

function grouped(registers) {
  const found = new Map();
  for (const each of registers) found.set(each.table, [...(found.get(each.table) ?? []), each]);
  return found;
}

/** Return the [name, registers] of the tables that a driver works with, and of those of PCI. */
function ordered(tables) {
  const all = [...tables];
  return {
    first: VIRTIO_TABLES.flatMap((suffix) => all.filter(([name]) => name.endsWith(suffix))),
    others: all.filter(([name]) => !VIRTIO_TABLES.some((suffix) => name.endsWith(suffix))),
  };
}

function registerTable(head, rows) {
  return element("table", {}, element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, ...rows));
}

function registerRow({ register, ...rest }, isNew) {
  return element("tr", { class: isNew ? "changed" : "", "data-register": register, "data-value": rest.value },
    element("th", { scope: "row" }, printable(register)), ...Object.values(rest).map((text) => element("td", {}, text)));
}

function card(title, body) {
  return element("section", { class: "card", "aria-label": title }, element("h3", {}, title), body);
}

function configDump(bytes) {
  const rows = [];
  for (let at = 0; at < bytes.length; at += 16) {
    rows.push(`${at.toString(16).padStart(2, "0")}  ${Array.from(bytes.subarray(at, at + 16), (byte) => byte.toString(16).padStart(2, "0")).join(" ")}\n`);
  }
  return element("pre", { class: "hex", tabIndex: 0 }, rows.join(""));
}
