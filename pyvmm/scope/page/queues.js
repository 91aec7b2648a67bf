// SPDX-License-Identifier: Apache-2.0
/**
 * The queue view: the rings of one virtqueue, its buffers as a table, and one of them in detail.
 *
 * Of a guest that runs it shows the ring memory as it is now, read several times a second, or, like
 * a recording, the state after the selected event. Selecting an event changes to the latter, and to
 * the queue of the event.
 */

import { BufferPanel, table } from "./buffer.js";
import { element, onFrame } from "./elements.js";
import { count, hex, printable, size } from "./format.js";
import { QueueHistory } from "./queue_replay.js";
import { flagNames, INDIRECT, OWNERS, stateOfMemory } from "./queue_state.js";
import { colorOf, Rings } from "./rings.js";

const POLL_MS = 300;
const MAX_ROWS = 200;

/** @param {HTMLElement} root @param {import("./main.js").Scope} scope */
export function create(root, scope) {
  return new QueueView(root, scope);
}

class QueueView {
  #scope;
  #histories = new Map();
  #select = element("select", {});
  #now = element("button", { type: "button", "aria-pressed": "false" }, "Now");
  #summary = element("span", { role: "status" });
  #chains = element("div", { class: "queue-tables" });
  #panel;
  #rings = new Rings((arc, kept) => this.#pick(arc, kept));
  #root;
  #queue = null; // {device, queue}
  #live;
  #state = null;
  #drawn = ""; // the state that the elements show
  #head = null; // the buffer that was chosen
  #shown = false;
  #timer = 0;
  #draw = onFrame(() => this.#shown && this.#refresh());

  constructor(root, scope) {
    const detail = element("div", { class: "buffer", "aria-live": "polite" });
    this.#scope = scope;
    this.#root = root;
    this.#live = scope.source.info.live;
    this.#panel = new BufferPanel(detail, scope.source);
    this.#now.hidden = !this.#live;
    this.#now.title = "Show guest memory as it is now, not at the selected event";
    this.#now.addEventListener("click", () => this.#show(true));
    this.#select.addEventListener("change", () => scope.open("queues", ...JSON.parse(this.#select.value)));
    root.append(
      element("div", { class: "toolbar" },
        element("label", {}, "queue", this.#select), this.#now, this.#summary,
        element("span", { class: "space" }), legend()),
      element("div", { class: "queue-body" },
        element("div", { class: "rings-place" }, this.#rings.root),
        element("div", { class: "queue-parts" }, this.#chains, detail)));
    scope.store.subscribe(this.#draw);
    scope.selection.subscribe(() => this.#followSelection());
    scope.source.onMessage(({ type }) => (type === "step" || type === "status") && this.#draw());
  }

  show([device, queue] = []) {
    this.#shown = true;
    if (device !== undefined && queue !== undefined) this.#queue = { device, queue };
    this.#draw();
    if (this.#live) this.#timer = setInterval(() => this.#live && this.#refresh(), POLL_MS);
  }

  hide() {
    this.#shown = false;
    clearInterval(this.#timer);
  }

  #show(now) {
    this.#live = now;
    this.#draw();
  }

  #followSelection() {
    const event = this.#scope.selection.event;
    if (event?.queue) this.#queue = { device: event.device, queue: event.queue };
    // Where Step has stopped the guest, its memory is as it was at the event.
    this.#show(event !== null && event.seq === this.#scope.step?.stoppedAt);
  }

  async #refresh() {
    const known = this.#offerQueues();
    this.#queue ??= known[0] ?? null;
    this.#now.setAttribute("aria-pressed", String(this.#live));
    if (!this.#queue) return void (this.#summary.textContent = "No queue was seen yet");
    this.#select.value = JSON.stringify([this.#queue.device, this.#queue.queue]);
    const asked = this.#queue;
    try {
      const state = this.#live ? stateOfMemory(await this.#scope.source.get("queue", asked)) : this.#stateOfEvents();
      if (asked === this.#queue && state) this.#drawState(state);
    } catch (error) {
      this.#summary.textContent = printable(error.message);
      this.#root.dataset.state = "unavailable";
    }
  }

  #stateOfEvents() {
    const { store, selection } = this.#scope, { device, queue } = this.#queue;
    const key = JSON.stringify([device, queue]);
    if (!this.#histories.has(key)) this.#histories.set(key, new QueueHistory(store, device, queue));
    return this.#histories.get(key).stateAt(selection.index >= 0 ? selection.index : store.end - 1);
  }

  /** Fill the list of queues: those of the source, and those of which there are events. */
  #offerQueues() {
    const { source, store } = this.#scope;
    const known = new Map();
    const add = (device, queue) => known.set(JSON.stringify([device, queue]), { device, queue });
    for (const { name, queues } of source.info.devices) for (const queue of queues) add(name, queue);
    for (const { kind, device, queue } of store.types.list) if (queue && kind !== "interrupt") add(device, queue);
    if (known.size !== this.#select.options.length) {
      this.#select.replaceChildren(...[...known].map(([value, { device, queue }]) =>
        element("option", { value }, printable(`${device} ${queue}`))));
    }
    return [...known.values()];
  }

  /** @param {import("./queue_state.js").QueueState} state */
  #drawState(state) {
    this.#state = state;
    this.#root.dataset.state = state.origin;
    this.#summary.textContent = summaryOf(state);
    const facts = JSON.stringify([this.#queue, this.#head, [...state.descriptors.values()].map((each) => String(each.gpa)),
      { ...state, descriptors: 0, chains: state.chains.map(({ descriptors: _, ...rest }) => rest), availRing: [...state.availRing], usedRing: [...state.usedRing] }]);
    if (facts === this.#drawn) return; // elements stay as they are, and the focus with them
    this.#drawn = facts;
    this.#rings.draw(state);
    this.#chains.replaceChildren(...tables(state, this.#head, (head) => this.#pick({ chain: this.#chain(head) }, true)));
    const chosen = this.#chain(this.#head);
    if (chosen) this.#showBuffer(chosen);
  }

  #chain(head) {
    return this.#state.chains.find((chain) => chain.head === head) ?? null;
  }

  #pick({ chain }, kept) {
    if (!chain || !this.#state) return;
    if (kept) this.#head = this.#head === chain.head ? null : chain.head;
    else if (this.#head !== null) return;
    this.#showBuffer(chain);
    for (const row of this.#chains.querySelectorAll("tr[data-head]")) {
      row.setAttribute("aria-selected", String(Number(row.dataset.head) === this.#head));
    }
  }

  #showBuffer(chain) {
    this.#panel.show(chain, { ...this.#queue, bytes: this.#live });
  }
}

function legend() {
  return element("span", { class: "legend" }, ...Object.entries(OWNERS).map(([owner, says]) =>
    element("span", { title: says }, element("i", { class: `swatch ${owner}` }), owner)));
}

/** Return the state in one line. */
function summaryOf({ size: entries, sizeIsKnown, chains, fault, origin }) {
  if (!entries) return "Not set up";
  const inFlight = chains.filter(({ owner }) => owner === "available" || owner === "device").length;
  const assumed = sizeIsKnown ? "" : " (assumed: its set-up was not recorded)";
  const where = origin === "memory" ? "from guest memory" : "from events";
  return `${count(entries)} entries${assumed}, ${inFlight} ${inFlight === 1 ? "buffer" : "buffers"} in flight, ${where}${fault ? ` – ${printable(fault)}` : ""}`;
}

/** Return the tables of buffers, indices and descriptors, which say in words what the rings show. */
function tables(state, chosen, pick) {
  const buffers = element("table", { class: "buffers" },
    element("caption", {}, "Buffers, the newest first"),
    element("thead", {}, element("tr", {}, ...["head", "owner", "descriptors", "bytes", "available at", "used at"]
      .map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, ...[...state.chains].reverse().slice(0, MAX_ROWS).map((chain) => bufferRow(chain, chosen, pick))));
  const indices = [["available: driver's idx", state.availIdx], ["available: device's next", state.nextAvail],
    ["used: device's idx", state.usedIdx], ["used_event", state.usedEvent], ["avail_event", state.availEvent],
    ["available: flags", state.availFlags], ["used: flags", state.usedFlags]];
  const own = [...state.descriptors.values()].slice(0, MAX_ROWS).sort((a, b) => a.index - b.index);
  return [buffers,
    details("Indices and flags", table(["index", "value"], indices.map(([name, value]) => [name, value === null ? "not known" : String(value)]))),
    details("Descriptor table", table(["index", "address", "length", "flags", "next"], own.map((each) =>
      [String(each.index), hex(each.gpa), size(each.length), flagNames(each.flags), String(each.next)])))];
}

const opened = new Set();

function details(title, content) {
  const made = element("details", { open: opened.has(title) }, element("summary", {}, title), content);
  made.addEventListener("toggle", () => (made.open ? opened.add(title) : opened.delete(title)));
  return made;
}

function bufferRow(chain, chosen, pick) {
  const { head, owner, descriptors, availIndex, usedIndex } = chain, own = chain.members.length;
  const indirect = descriptors.length > own ? ` + ${descriptors.length - own} indirect` : "";
  const bytes = descriptors.filter(({ flags }) => !(flags & INDIRECT)).reduce((sum, { length }) => sum + Number(length), 0);
  const row = element("tr", {
    "data-head": head, "data-owner": owner, tabIndex: 0, "aria-selected": String(head === chosen),
  },
    element("td", {}, element("i", { class: `swatch ${owner} chain-${colorOf(chain)}` }), String(head)),
    ...[owner, `${own}${indirect}`, size(bytes), availIndex ?? "", usedIndex ?? ""].map((text) => element("td", {}, String(text))));
  row.addEventListener("click", () => pick(head));
  row.addEventListener("keydown", ({ key }) => key === "Enter" && pick(head));
  return row;
}
