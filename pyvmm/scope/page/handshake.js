// SPDX-License-Identifier: Apache-2.0
/**
 * The handshake of a driver and its device as a sequence diagram, and which features were offered,
 * accepted and refused. A step selects its event. Old steps are forgotten with their events, and at
 * most 2000 are kept, as a guest may reset a device as often as it likes.
 */

import { element, onFrame } from "./elements.js";
import { printable, time } from "./format.js";
import { KINDS, since, stepsOf } from "./handshake_steps.js";

const MAX_STEPS = 2000, MAX_FEATURES = 128;
const STATES = { accepted: "accepted", refused: "offered, refused by the driver", unknown: "not offered" };

/** @param {HTMLElement} root @param {import("./main.js").Scope} scope */
export function create(root, scope) {
  return new Handshake(root, scope);
}

class Handshake {
  #scope;
  #steps = new Map(); // by device
  #next = 0; // events before this index are read
  #shown = false;
  #device = element("select", { "aria-label": "Device" });
  #list = element("ol", { class: "handshake", "aria-label": "Steps of the initialisation" });
  #draw = onFrame(() => this.#shown && this.#drawNow());

  constructor(root, scope) {
    this.#scope = scope;
    const legend = Object.entries(STATES).map(([state, text]) =>
      element("span", {}, element("i", { class: `feature ${state}` }, text)));
    root.append(
      element("div", { class: "toolbar" }, element("label", {}, "device", this.#device),
        element("span", { class: "space" }), element("span", { class: "legend" }, "features:", ...legend)),
      element("div", { class: "lifelines", "aria-hidden": "true" }, element("b", {}, "driver"), element("b", {}, "device")),
      this.#list);
    this.#device.addEventListener("change", this.#draw);
    scope.store.subscribe(this.#draw);
    scope.selection.subscribe(this.#draw);
  }

  /** Show the handshake of the device that `path` names, if it does. */
  show([device] = []) {
    this.#shown = true;
    this.#read();
    if (device && this.#steps.has(device)) this.#device.value = device;
    this.#draw();
  }

  hide() {
    this.#shown = false;
  }

  /** Take the steps of new events in. */
  #read() {
    const { store } = this.#scope;
    const isStep = (type) => KINDS.has(type.kind) && type.device;
    for (let index = store.find(isStep, Math.max(this.#next, store.first)); index >= 0; index = store.find(isStep, index + 1)) {
      const event = store.event(index);
      if (!this.#steps.has(event.device)) {
        if (this.#steps.size >= 100) continue;
        this.#steps.set(event.device, []);
        this.#device.append(element("option", { value: event.device }, printable(event.device)));
      }
      const steps = this.#steps.get(event.device);
      steps.push(...stepsOf(event));
      if (steps.length > MAX_STEPS) steps.splice(0, steps.length - MAX_STEPS);
    }
    this.#next = store.end;
  }

  #drawNow() {
    this.#read();
    const all = this.#steps.get(this.#device.value) ?? [];
    const steps = all.filter(({ index }) => index >= this.#scope.store.first);
    this.#list.replaceChildren(...steps.map((step, i) => this.#row(step, steps[i - 1])));
    if (!steps.length) this.#list.append(element("li", { class: "hint" }, "No device was initialised in these events."));
  }

  #row(step, before) {
    const { selection } = this.#scope;
    const button = element("button", {
      type: "button", class: `exchange from-${step.from}${step.failed ? " failed" : ""}`,
      "aria-pressed": String(step.index === selection.index),
      "aria-label": `${step.from}: ${printable(step.title)}`,
    }, element("span", { class: "label" }, printable(step.title)), element("span", { class: "arrow" }));
    button.addEventListener("click", () => selection.set(step.index));
    return element("li", {},
      element("span", { class: "when", title: time(step.timeNs) }, before ? since(step, before) : time(step.timeNs)),
      button,
      element("div", { class: "note" }, element("p", {}, printable(step.text)), features(step), element("small", {}, step.clause)));
  }
}

function features({ features: list = [] }) {
  return element("p", { class: "features" }, ...list.slice(0, MAX_FEATURES).map(({ name, state }) =>
    element("span", { class: `feature ${state}`, title: STATES[state] }, printable(name))));
}
