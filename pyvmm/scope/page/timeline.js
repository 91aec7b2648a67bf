// SPDX-License-Identifier: Apache-2.0
/**
 * The timeline: the lanes of the machine over time, and the list of events below them.
 *
 * The wheel zooms, dragging zooms to what was selected, dragging with Shift moves, and a click
 * selects the nearest event of a lane.
 */

import { Density } from "./density.js";
import { element, onFrame } from "./elements.js";
import * as eventList from "./event_list.js";
import { Lanes } from "./lanes.js";
import * as theme from "./theme.js";
import { TimeWindow } from "./time_window.js";
import * as drawing from "./timeline_drawing.js";

const CLICK_PIXELS = 4, NEAR_PIXELS = 12;

/** The legends of single events, and of bars while there are too many to be shown one by one. */
const MARKS = ["▼ notification to the device", "▲ to the driver", "■ descriptor", "● taken", "○ used", "❘ other"];
const BARS = ["▁▃▆ events at a time, logarithmic", "zoom in to see each: wheel, + or drag"];

/** @param {HTMLElement} root @param {import("./main.js").Scope} scope */
export function create(root, scope) {
  return new Timeline(root, scope);
}

class Timeline {
  #store;
  #selection;
  #lanes;
  #density;
  #view;
  #list;
  #canvas = element("canvas", { class: "timeline-canvas", role: "img", tabIndex: 0 });
  #legend = element("span", { class: "legend" });
  #drag = null; // pixels at which a drag began and is, and whether it moves the window
  #shown = false;
  #draw = onFrame(() => this.#shown && this.#drawNow());

  constructor(root, scope) {
    const { store, selection, source } = scope;
    this.#store = store;
    this.#selection = selection;
    this.#lanes = new Lanes(store.types, source.info.devices);
    this.#density = new Density(store, this.#lanes);
    this.#view = new TimeWindow(store);
    root.append(this.#toolbar(), element("div", { class: "timeline-scroll" }, this.#canvas));
    this.#list = eventList.create(root, scope);
    store.subscribe(this.#draw);
    selection.subscribe(() => {
      if (selection.event) this.#view.reveal(selection.event.timeNs);
      this.#draw();
    });
    theme.subscribe(this.#draw);
    new ResizeObserver(this.#draw).observe(root);
    this.#listen();
  }

  show() {
    this.#shown = true;
    this.#list.show();
    this.#draw();
  }

  hide() {
    this.#shown = false;
    this.#list.hide();
  }

  #toolbar() {
    const button = (text, label, act) => {
      const made = element("button", { type: "button", title: label, "aria-label": label }, text);
      made.addEventListener("click", () => this.#change(act));
      return made;
    };
    return element("div", { class: "toolbar" },
      button("−", "Zoom out (-)", () => this.#view.zoom(2)),
      button("+", "Zoom in (+)", () => this.#view.zoom(0.5)),
      button("All", "Show all (0)", () => this.#view.showAll()),
      element("span", { class: "space" }),
      this.#legend);
  }

  /** Change the window, and draw. */
  #change(act) {
    act();
    this.#draw();
  }

  get #layout() {
    return drawing.layout(this.#canvas.clientWidth, this.#lanes.rows.length);
  }

  #drawNow() {
    this.#density.update();
    this.#view.update();
    this.#canvas.style.height = `${this.#layout.height}px`;
    const state = {
      store: this.#store, selection: this.#selection, lanes: this.#lanes, density: this.#density,
      view: this.#view, drag: this.#drag && !this.#drag.moves ? [this.#drag.from, this.#drag.to] : null,
      lane: this.#layout,
    };
    drawing.draw(this.#canvas, state);
    const texts = this.#store.count && !drawing.showsMarks(state) ? BARS : MARKS;
    if (texts !== this.#legend.texts) this.#legend.replaceChildren(...texts.map((text) => element("span", {}, text)));
    this.#legend.texts = texts;
    this.#canvas.setAttribute("aria-label", drawing.inWords(state));
  }

  /** Return the time at the pixel `x`. */
  #timeAt(x) {
    const { left, width } = this.#layout;
    return this.#view.from + ((x - left) / width) * this.#view.span;
  }

  #listen() {
    const canvas = this.#canvas;
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const sideways = event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY);
      const amount = (sideways && event.deltaX) || event.deltaY;
      this.#change(() => (sideways
        ? this.#view.pan((amount / this.#layout.width) * this.#view.span)
        : this.#view.zoom(1.0015 ** Math.min(Math.max(amount, -500), 500), this.#timeAt(event.offsetX))));
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button > 1) return;
      canvas.setPointerCapture(event.pointerId);
      const moves = event.shiftKey || event.button === 1;
      this.#drag = { from: event.offsetX, to: event.offsetX, moves };
    });
    canvas.addEventListener("pointermove", (event) => this.#drag && this.#dragTo(event));
    canvas.addEventListener("pointerup", (event) => this.#drag && this.#drop(event));
    canvas.addEventListener("pointercancel", () => (this.#drag = null));
    document.addEventListener("keydown", (event) => this.#key(event));
  }

  #dragTo(event) {
    const drag = this.#drag, before = drag.to;
    drag.to = event.offsetX;
    this.#change(() => {
      if (drag.moves) this.#view.pan(((before - drag.to) / this.#layout.width) * this.#view.span);
    });
  }

  #drop(event) {
    const { from, to, moves } = this.#drag;
    this.#drag = null;
    this.#change(() => {
      if (Math.abs(to - from) <= CLICK_PIXELS) this.#select(event.offsetX, event.offsetY);
      else if (!moves) this.#view.show(this.#timeAt(Math.min(from, to)), this.#timeAt(Math.max(from, to)));
    });
  }

  /** Select the event of the lane at `y` that is nearest to `x`. */
  #select(x, y) {
    const { top, row } = this.#layout, at = this.#lanes.rows[Math.floor((y - top) / row)];
    if (!at || !this.#store.count) return;
    const inLane = (type) => at.lanes.includes(this.#lanes.ofType[type.id]);
    const ns = this.#timeAt(x), from = this.#store.indexAt(ns);
    const near = [this.#store.find(inLane, from, 1), this.#store.find(inLane, from - 1, -1)]
      .filter((index) => index >= 0)
      .map((index) => ({ index, away: Math.abs(this.#store.timeAt(index) - ns) }))
      .sort((a, b) => a.away - b.away);
    const nearNs = (NEAR_PIXELS / this.#layout.width) * this.#view.span;
    if (near.length && near[0].away <= nearNs) this.#selection.set(near[0].index);
  }

  #key(event) {
    if (!this.#shown || event.ctrlKey || event.altKey || event.metaKey || event.target.matches("input, select")) return;
    const view = this.#view, step = view.span / 8;
    const actions = {
      "+": () => view.zoom(0.5), "=": () => view.zoom(0.5), "-": () => view.zoom(2), 0: () => view.showAll(),
      h: () => view.pan(-step), l: () => view.pan(step),
    };
    if (!Object.hasOwn(actions, event.key)) return;
    event.preventDefault();
    this.#change(actions[event.key]);
  }
}
