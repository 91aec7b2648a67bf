// SPDX-License-Identifier: Apache-2.0
/**
 * Step: stop the guest at the next event of a kind, look, and let it run: a breakpoint for virtio.
 *
 * The banner above all views says what Step does, and has its buttons; the keys `s` and `r` work in
 * every view. The server holds the guest only for as long as the page answers: one that is gone for
 * 10 s lets it run.
 */

import { element } from "./elements.js";
import { printable } from "./format.js";

const LEASE_TEXT = "The guest runs again if this page does not answer for 10 s.";
const FREQUENT = ["notified", "descriptor", "chain", "used", "used_notification", "interrupt", "register_write", "register_read",
  "avail_notifications", "inflate", "deflate", "report", "status", "features", "queue_live"];

/** Step of one page: what is armed, and where the guest has stopped. */
export class Step {
  state = "off"; // "off", "arming" until the guest has taken it, "armed" or "stopped"
  chosen = { kinds: ["notified"] };
  /** The event at which the guest stopped: {seq, kind, device, queue}. */
  stop = null;
  #source;
  #subscribers = new Set();

  constructor(scope) {
    this.#source = scope.source;
    scope.source.onMessage((message) => this.#take(message, scope));
    scope.source.subscribe((state) => state === "ended" && this.#set("off"));
  }

  /** The number of the event at which the guest has stopped; null while it runs. */
  get stoppedAt() {
    return this.state === "stopped" ? this.stop.seq : null;
  }

  /** Whether the guest stops at the next event that is chosen, or soon will. */
  get armed() {
    return this.state === "arming" || this.state === "armed";
  }

  subscribe(told) {
    this.#subscribers.add(told);
  }

  /** Arm Step with what is chosen; a guest that is stopped runs to the next such event. */
  next() {
    this.#source.send({ type: "step", ...this.chosen });
    if (this.state === "stopped") this.#source.send({ type: "resume" });
    this.#set("arming");
  }

  /** Disarm, and let the guest run. */
  resume() {
    this.#source.send({ type: "disarm" });
    if (this.state === "stopped") this.#source.send({ type: "resume" });
    this.#set("off");
  }

  #take(message, { store, selection }) {
    if (message.type === "step") {
      this.stop = message;
      this.#set("stopped");
      const select = () => {
        const found = indexOf(store, message.seq);
        if (found >= 0) selection.set(found);
        // Without it although there are later ones, it was dropped.
        return found >= 0 || (store.count > 0 && store.event(store.end - 1).seq > message.seq);
      };
      if (select()) return;
      const end = store.subscribe(() => select() && end()); // its chunk is on the way
    } else if (message.type === "armed") {
      if (this.state === "arming") this.#set("armed");
    } else if (message.type === "status" && (message.error ? this.armed : this.state === "stopped") && message.status !== "paused") {
      this.#set("off"); // it was refused, or another client has resumed the guest
    }
  }

  #set(state) {
    this.state = state;
    for (const told of this.#subscribers) told();
  }
}

/** Return the index of the event with the number `seq`; -1 if it is not there. */
function indexOf(store, seq) {
  for (let index = store.end - 1; index >= store.first; index--) {
    const event = store.event(index);
    if (event.seq === seq) return index;
    if (event.seq < seq) break;
  }
  return -1;
}

/** Fill the banner, and listen to the keys. @param {import("./main.js").Scope} scope */
export function create(root, scope) {
  if (!scope.source.info.live) return;
  const step = (scope.step = new Step(scope)), kind = choice("kind", kindsOf(scope)), place = choice("at", placesOf(scope));
  kind.select.value = "notified";
  const arm = button("Step", "s", "primary", () => step.next()), resume = button("Resume", "r", "", () => step.resume());
  const text = element("span", { class: "step-text", role: "status" });
  const choose = () => {
    const [device, queue] = JSON.parse(place.select.value);
    step.chosen = { kinds: [kind.select.value], ...(device && { device }), ...(queue && { queue }) };
  };
  for (const { select } of [kind, place]) select.addEventListener("change", choose);
  root.append(element("b", {}, "Step"), kind.label, place.label, arm, resume, text);
  root.hidden = false;
  const draw = () => {
    root.dataset.state = step.state;
    arm.firstChild.textContent = { off: "Stop at the next", arming: "Arming", armed: "Armed", stopped: "Next" }[step.state];
    arm.disabled = step.armed;
    resume.firstChild.textContent = step.state === "stopped" ? "Resume" : "Disarm";
    resume.hidden = step.state === "off";
    text.textContent = textOf(step);
  };
  step.subscribe(draw);
  choose();
  draw();
  document.addEventListener("keydown", ({ key, target, ctrlKey, altKey, metaKey }) => {
    if (ctrlKey || altKey || metaKey || target.matches?.("input, select, textarea")) return;
    if (key === "s" && !step.armed) step.next();
    if (key === "r" && step.state !== "off") step.resume();
  });
}

function textOf({ state, stop, chosen }) {
  if (state === "off") return "";
  const place = ({ device, queue }) => [device, queue].filter(Boolean).join(" ") || "any device";
  if (state === "arming" || state === "armed") return printable(`The guest stops at the next ${chosen.kinds[0]} of ${place(chosen)}. ${LEASE_TEXT}`);
  return printable(`Stopped at ${stop.kind} of ${place(stop)}, event ${stop.seq}. ${LEASE_TEXT}`);
}

function kindsOf({ source }) {
  const all = source.info.kinds.map(({ name }) => name).filter((name) => name !== "dropped"); // no event of the guest
  const names = [...FREQUENT.filter((name) => all.includes(name)), ...all.filter((name) => !FREQUENT.includes(name))];
  return names.map((name) => [name, name]);
}

function placesOf({ source }) {
  const found = [[JSON.stringify(["", ""]), "any device"]];
  for (const { name, queues } of source.info.devices) {
    found.push([JSON.stringify([name, ""]), name]);
    for (const queue of queues) found.push([JSON.stringify([name, queue]), `${name} ${queue}`]);
  }
  return found;
}

function choice(name, options) {
  const select = element("select", {}, ...options.map(([value, text]) => element("option", { value }, printable(text))));
  return { select, label: element("label", {}, name, select) };
}

function button(text, key, style, act) {
  const made = element("button", { type: "button", class: style, "aria-keyshortcuts": key }, element("span", {}, text), " ", element("kbd", {}, key));
  made.addEventListener("click", act);
  return made;
}
