// SPDX-License-Identifier: Apache-2.0
/**
 * The memory view: a map of the guest's RAM by page state, with a slider over the samples that were
 * taken, and its resident size and balloon over time. A cell of the map is filled with a band for
 * each state. Arrow keys move from cell to cell; the line below the map says what is there.
 */

import { canvasContext, element, onFrame, rem } from "./elements.js";
import { EventHistory } from "./event_history.js";
import { hex, printable, size } from "./format.js";
import { lineChart } from "./line_chart.js";
import { FOLLOWED, PAGE_BYTES, RECORDED_STATES, RecordedMemory, Samples, shares, STATES } from "./memory_state.js";
import * as theme from "./theme.js";

const POLL_MS = 1000;
const CELLS = 2048;
const ADDRESS_REM = 6.5; // room for the addresses beside the map
const LIVE_HINT = "Counts of the host's kernel and of the balloon. A cell has a band for each state.";
const RECORDED_HINT = "From events: they tell which pages were reported as free, and where rings and buffers are. "
  + "The pages in the balloon are named in the bytes of buffers, which are not recorded; its size is.";
const NO_RAM_HINT = "The size of the guest's RAM is not in the recording, so there is no map of it.";

/** @param {HTMLElement} root @param {import("./main.js").Scope} scope */
export function create(root, scope) {
  return new MemoryView(root, scope);
}

class MemoryView {
  #scope;
  #canvas = element("canvas", { class: "memory-map", tabIndex: 0, role: "img", "aria-label": "RAM by page state" });
  #slider = element("input", { type: "range", min: 0, max: 0, value: 0, "aria-label": "Sample" });
  #when = element("span", {});
  #hint = element("p", { class: "hint" });
  #place = element("p", { class: "memory-place", role: "status" });
  #legend = element("table", { class: "memory-legend" });
  #chart = element("div", { class: "memory-chart" });
  /** @type {Samples<{timeMs: number, cells: object[], cellBytes: number, rss: number, balloon: number}>} */
  #samples = new Samples();
  #states;
  #live;
  #history = null; // of a recording
  #recorded = null; // its RecordedMemory after the event at `#last`
  #last = -1;
  #balloon = 0;
  #columns = 1;
  #cursor = 0;
  #timer = 0;
  #shown = false;
  #draw = onFrame(() => this.#shown && this.#drawSample());

  constructor(root, scope) {
    this.#scope = scope;
    this.#live = scope.source.info.live;
    this.#states = this.#live ? STATES : RECORDED_STATES;
    this.#hint.textContent = this.#live ? LIVE_HINT : RECORDED_HINT;
    root.append(
      element("div", { class: "toolbar" }, element("label", { class: "memory-time" }, this.#live ? "sample" : "time", this.#slider), this.#when),
      element("div", { class: "memory-body" },
        element("div", { class: "memory-left" }, this.#canvas, this.#place),
        element("div", { class: "memory-right" }, this.#legend, this.#chart, this.#hint)));
    this.#slider.addEventListener("input", () => (this.#live ? this.#draw() : scope.selection.set(Number(this.#slider.value))));
    this.#canvas.addEventListener("pointermove", ({ offsetX, offsetY }) => this.#point(offsetX, offsetY));
    this.#canvas.addEventListener("keydown", (event) => this.#moveCursor(event));
    scope.source.onMessage((message) => {
      if (message.type === "stats") this.#balloon = message["balloon-actual"] ?? 0;
    });
    theme.subscribe(this.#draw);
    new ResizeObserver(this.#draw).observe(this.#canvas);
    if (this.#live) return;
    const follow = onFrame(() => this.#shown && this.#reconstruct());
    scope.selection.subscribe(follow);
    scope.store.subscribe(follow);
  }

  show() {
    this.#shown = true;
    if (!this.#live) return this.#reconstruct();
    this.#sample();
    this.#timer = setInterval(() => this.#sample(), POLL_MS);
  }

  hide() {
    this.#shown = false;
    clearInterval(this.#timer);
  }

  async #sample() {
    try {
      const { cell_bytes: cellBytes, cells, rss } = await this.#scope.source.get("pages", { cells: CELLS });
      const pages = cellBytes / PAGE_BYTES;
      const found = cells.map((cell) => ({ gpa: cell[0], shares: shares(cell, pages) }));
      this.#add({ timeMs: performance.now(), cells: found, cellBytes, rss, balloon: this.#balloon });
    } catch (error) {
      this.#place.textContent = printable(error.message);
    }
  }

  #add(sample) {
    const atEnd = Number(this.#slider.value) >= Number(this.#slider.max);
    this.#samples.add(sample);
    this.#slider.max = this.#samples.list.length - 1;
    if (atEnd) this.#slider.value = this.#slider.max;
    this.#draw();
  }

  /** Follow the events up to the selected one, and make a sample of what they tell. */
  #reconstruct() {
    const { store, selection, source } = this.#scope, last = selection.index >= 0 ? selection.index : store.end - 1;
    this.#history ??= new EventHistory(store, {
      make: () => new RecordedMemory(source.info.ram, CELLS), concerns: ({ kind }) => FOLLOWED.has(kind),
    });
    [this.#recorded, this.#last] = [this.#history.at(last), last];
    Object.assign(this.#slider, { min: store.first, max: store.end - 1, value: last });
    this.#draw();
  }

  get #shownSample() {
    if (this.#live) return this.#samples.list[Number(this.#slider.value)];
    const { store } = this.#scope, memory = this.#recorded;
    return memory && this.#last >= store.first
      ? { timeMs: store.timeAt(this.#last) / 1e6, cells: memory.cells, cellBytes: memory.cellBytes } : null;
  }

  #drawSample() {
    const sample = this.#shownSample;
    if (!sample?.cells) return;
    this.#when.textContent = this.#live ? ageOf(sample, this.#samples.list.at(-1)) : "at the selected event";
    if (sample.cells.length) this.#drawMap(sample);
    this.#tell(sample);
    this.#drawLegend(sample);
    const points = (key) => this.#samples.list.map((each) => [each.timeMs, each[key]]);
    const lines = this.#live
      ? [{ name: "balloon", color: "c2", points: points("balloon") }, { name: "RSS", color: "c1", points: points("rss") }]
      : [{ name: "balloon", color: "c2", points: this.#recorded.balloon }];
    const isEmpty = lines.every(({ points: own }) => !own.length); // as before the first report of a balloon
    const since = this.#live ? sample.timeMs : 0; // a recording's times are those of the timeline
    const limits = { at: sample.timeMs, most: this.#scope.source.info.memory ?? 0, since };
    this.#chart.replaceChildren(...(isEmpty ? [] : [lineChart(lines, limits)]));
  }

  #drawMap({ cells, cellBytes }) {
    const context = canvasContext(this.#canvas), { clientHeight: height } = this.#canvas;
    const left = ADDRESS_REM * rem(), width = Math.max(this.#canvas.clientWidth - left, 1);
    const side = Math.max(2, Math.floor(Math.sqrt((width * height) / Math.max(cells.length, 1))));
    this.#columns = Math.max(1, Math.floor(width / side));
    while (Math.ceil(cells.length / this.#columns) * side > height && this.#columns < cells.length) this.#columns++;
    const edge = Math.max(2, Math.min(side, Math.floor(width / this.#columns))), gap = edge > 6 ? 1 : 0, pages = cellBytes / PAGE_BYTES;
    this.#canvas.edge = edge;
    context.clearRect(0, 0, left + width, height);
    context.save();
    context.translate(left, 0);
    cells.forEach((cell, place) => {
      const x = (place % this.#columns) * edge, inner = edge - gap;
      let y = Math.floor(place / this.#columns) * edge;
      for (const { name, color } of this.#states) {
        const high = (cell.shares[name] / pages) * inner;
        context.fillStyle = theme.color(color);
        context.fillRect(x, y, inner, high);
        y += high;
      }
    });
    const x = (this.#cursor % this.#columns) * edge, y = Math.floor(this.#cursor / this.#columns) * edge;
    for (const [color, lineWidth] of [["text", 4], ["surface", 1.5]]) {
      Object.assign(context, { strokeStyle: theme.color(color), lineWidth });
      context.strokeRect(x + 2, y + 2, edge - gap - 4, edge - gap - 4);
    }
    context.restore();
    this.#drawAddresses(context, cells, left);
  }

  /** Write the address of its first cell before each row that has room for it. */
  #drawAddresses(context, cells, left) {
    const { edge } = this.#canvas, size = 0.857 * rem(), every = Math.ceil((1.5 * size) / edge);
    Object.assign(context, {
      font: `${size}px ${getComputedStyle(this.#place).fontFamily}`, fillStyle: theme.color("muted"),
      textAlign: "right", textBaseline: "middle",
    });
    for (let row = 0; row * this.#columns < cells.length; row += every) {
      context.fillText(hex(cells[row * this.#columns].gpa), left - 0.6 * size, (row + 0.5) * edge);
    }
  }

  #drawLegend({ cells }) {
    const total = (name) => cells.reduce((sum, cell) => sum + cell.shares[name], 0) * PAGE_BYTES;
    this.#legend.replaceChildren(element("caption", {}, "Pages by state"), element("tbody", {}, ...this.#states.map(({ name, color, says }) => {
      const swatch = element("i", { class: "swatch plain" });
      swatch.style.background = `var(--${color})`;
      return element("tr", { "data-state": name, "data-bytes": total(name) },
        element("th", { scope: "row", title: says }, swatch, name), element("td", {}, size(total(name))), element("td", { class: "says" }, says));
    })));
  }

  #point(x, y) {
    const edge = this.#canvas.edge ?? rem();
    const column = Math.floor((x - ADDRESS_REM * rem()) / edge);
    if (column >= 0 && column < this.#columns) this.#moveTo(Math.floor(y / edge) * this.#columns + column);
  }

  #moveCursor(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.#columns, ArrowUp: -this.#columns }[event.key];
    if (!step) return;
    event.preventDefault();
    this.#moveTo(this.#cursor + step);
  }

  #moveTo(place) {
    if (!this.#shownSample?.cells?.[place] || place === this.#cursor) return;
    this.#cursor = place;
    this.#draw();
  }

  #tell(sample) {
    const { cells, cellBytes } = sample, cell = cells[this.#cursor];
    if (!cell) return void (this.#place.textContent = cells.length ? "" : NO_RAM_HINT);
    const parts = this.#states.filter(({ name }) => cell.shares[name]).map(({ name }) => `${cell.shares[name]} ${name}`);
    this.#place.textContent = `${hex(cell.gpa)} to ${hex(cell.gpa + cellBytes - 1)} (${size(cellBytes)}): ${parts.join(", ")} pages`;
  }
}

function ageOf(sample, newest) {
  const seconds = Math.round((newest.timeMs - sample.timeMs) / 1e3);
  return seconds ? `${seconds} s ago` : "now";
}
