// SPDX-License-Identifier: Apache-2.0
/**
 * The events as a list that a filter narrows. Only the rows that can be seen are elements; a filter
 * by place or kind looks at types only, one by text reads the fields of all events in slices, so
 * that the page answers meanwhile.
 */

import { placeOf, summary } from "./describe.js";
import { element, onFrame, rem } from "./elements.js";
import { count, printable, time } from "./format.js";

const ROW_REM = 1.6;
/** A browser limits the height of an element: beyond it, a pixel of scrolling is more than one. */
const MAX_HEIGHT = 8e6;
const SLICE = 20_000;

/** @param {HTMLElement} root @param {import("./main.js").Scope} scope */
export function create(root, scope) {
  return new EventList(root, scope);
}

class EventList {
  #scope;
  #filters;
  #text = element("input", { type: "search", placeholder: "text in any field", spellcheck: false });
  #summary = element("small", { role: "status" });
  #list = element("div", {
    class: "event-list", role: "listbox", tabIndex: 0, "aria-label": "Events; the keys j and k, and the arrows, move",
  });
  #matches = null; // indexes of the events that pass the filter; null if all do
  #scanned = 0; // events before this index are filtered
  #search = 0; // number of the filter, so that the scan of an older one ends
  #shown = false;
  #draw = onFrame(() => this.#drawRows());

  constructor(root, scope) {
    this.#scope = scope;
    this.#filters = ["device", "queue", "kind"].map((name) => new TypeFilter(name, () => this.#filter()));
    this.#text.addEventListener("input", () => this.#filter());
    root.append(
      element("div", { class: "toolbar" },
        ...this.#filters.map(({ name, select }) => element("label", {}, name, select)),
        element("label", {}, "fields", this.#text),
        element("span", { class: "space" }), this.#summary),
      this.#list);
    this.#list.addEventListener("scroll", this.#draw);
    this.#list.addEventListener("keydown", (event) => this.#move(event));
    scope.store.subscribe(() => this.#shown && this.#extend());
    scope.selection.subscribe(() => this.#shown && this.#reveal());
    new ResizeObserver(() => this.#shown && this.#reveal()).observe(this.#list);
  }

  show() {
    this.#shown = true;
    this.#extend();
    this.#reveal();
  }

  hide() {
    this.#shown = false;
  }

  get #length() {
    return this.#matches ? this.#matches.length : this.#scope.store.count;
  }

  /** Return the index in the store of the row at `place`. */
  #indexAt(place) {
    return this.#matches ? this.#matches[place] : this.#scope.store.first + place;
  }

  #filter() {
    const active = this.#text.value || this.#filters.some(({ select }) => select.value);
    this.#matches = active ? [] : null;
    this.#scanned = this.#scope.store.first;
    this.#search++;
    this.#list.scrollTop = 0;
    this.#extend();
  }

  /** Take events into the list that are new since the last call. */
  #extend() {
    for (const filter of this.#filters) filter.offer(this.#scope.store.types);
    if (this.#matches) this.#scan(this.#search);
    this.#draw();
  }

  async #scan(search) {
    const { store } = this.#scope, text = this.#text.value.toLowerCase();
    while (this.#shown && search === this.#search && this.#scanned < store.end) {
      const from = Math.max(this.#scanned, store.first), to = Math.min(from + SLICE, store.end);
      this.#scanned = to;
      const passes = store.types.list.map((type) => this.#filters.every((filter) => filter.passes(type)));
      store.columns(from, to, (_times, types, start) => {
        for (let i = 0; i < types.length; i++) {
          if (passes[types[i]] && (!text || this.#hasText(start + i, text))) this.#matches.push(start + i);
        }
      });
      this.#draw();
      if (text) await new Promise((resolve) => setTimeout(resolve));
    }
  }

  #hasText(index, text) {
    return summary(this.#scope.store.event(index)).toLowerCase().includes(text);
  }

  /** Return the height of all rows, and how many pixels of rows a pixel of scrolling is. */
  #extent() {
    const row = ROW_REM * rem(), all = this.#length * row, height = Math.min(all, MAX_HEIGHT);
    const view = this.#list.clientHeight;
    return { row, height, scale: height > view ? (all - view) / (height - view) : 1 };
  }

  #drawRows() {
    const { store, selection } = this.#scope, { row, height, scale } = this.#extent();
    while (this.#matches?.length && this.#matches[0] < store.first) this.#matches.shift();
    const top = this.#list.scrollTop, first = Math.max(Math.floor((top * scale) / row) - 2, 0);
    const last = Math.min(first + Math.ceil(this.#list.clientHeight / row) + 4, this.#length);
    const filler = element("div");
    filler.style.height = `${height}px`;
    const rows = [filler];
    for (let place = first; place < last; place++) {
      const event = store.event(this.#indexAt(place));
      const made = element("div", {
        class: "row", role: "option", "aria-selected": String(event.index === selection.index),
        "aria-posinset": place + 1, "aria-setsize": this.#length,
      }, ...[time(event.timeNs), placeOf(event), printable(event.kind), summary(event)]
        .map((text) => element("span", {}, text)));
      made.style.top = `${top - (top * scale - place * row)}px`;
      made.addEventListener("click", () => selection.set(event.index));
      rows.push(made);
    }
    this.#list.replaceChildren(...rows);
    this.#summary.textContent = this.#matches ? `${count(this.#length)} of ${count(store.count)}` : "";
  }

  /** Scroll so that the selected event can be seen. */
  #reveal() {
    const place = this.#placeOf(this.#scope.selection.index), { row, scale } = this.#extent();
    const top = this.#list.scrollTop * scale, view = this.#list.clientHeight;
    if (place >= 0 && (place * row < top || (place + 1) * row > top + view)) {
      this.#list.scrollTop = (place * row - view / 2) / scale;
    }
    this.#draw();
  }

  /** Return the place of the first row at `index` or after; -1 without a selected event. */
  #placeOf(index) {
    if (index < 0 || !this.#matches) return index < 0 ? -1 : index - this.#scope.store.first;
    let low = 0, high = this.#matches.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#matches[middle] < index) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #move(event) {
    const page = Math.floor(this.#list.clientHeight / this.#extent().row);
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined || !this.#length) return;
    event.preventDefault();
    event.stopPropagation();
    const place = Math.min(Math.max(this.#placeOf(this.#scope.selection.index) + step, 0), this.#length - 1);
    this.#scope.selection.set(this.#indexAt(place));
  }
}

/** A choice of one device, queue or kind, of those that occur. */
class TypeFilter {
  #known = 0;
  #values = new Set();

  constructor(name, changed) {
    this.name = name;
    this.select = element("select", {}, element("option", { value: "" }, "all"));
    this.select.addEventListener("change", changed);
  }

  offer({ list }) {
    for (; this.#known < list.length; this.#known++) {
      const value = list[this.#known][this.name];
      if (!value || this.#values.has(value) || this.#values.size >= 500) continue;
      this.#values.add(value);
      this.select.append(element("option", { value }, printable(value)));
    }
  }

  passes(type) {
    return !this.select.value || type[this.name] === this.select.value;
  }
}
