// SPDX-License-Identifier: Apache-2.0
/**
 * Draws a virtqueue as three rings of arcs (ring_layout.js), in SVG.
 *
 * The colour of an arc says which chain it belongs to, its pattern who owns it, and its label which
 * entry it is, so that nothing is told by colour alone. Elements are kept from one drawing to the
 * next: focus stays where it is, and pointers turn to their new place. Each ring is one stop of the
 * Tab key; arrow keys move in it.
 */

import { OWNERS } from "./queue_state.js";
import { ringsOf } from "./ring_layout.js";
import { setAttributes, svg } from "./svg.js";

const PITCH = 440, FIRST = 155, WIDTH = 2 * PITCH + FIRST + 290, SIDE = 384, OUTER = 146, INNER = 104, LABEL = 176;
const COLORS = 6;
const LEAST_LABEL = 9; // a shorter arc has no room for its label

/** Return the number of the colour of a chain, from 1 on: it keeps it from available to used. */
export function colorOf(chain) {
  return (chain.availIndex ?? chain.usedIndex ?? chain.head) % COLORS + 1;
}

/** Draws the rings into one SVG element, and tells `picked(arc)` which entry is pointed at. */
export class Rings {
  root = svg("svg", { viewBox: `0 0 ${WIDTH} ${SIDE}`, class: "rings", role: "group", "aria-label": "Rings of the queue" });
  #picked;
  #rings = new Map();

  /** `picked(arc, kept)` is called with an arc, `kept` if it was chosen and not only pointed at. */
  constructor(picked) {
    this.#picked = picked;
    this.root.append(patterns());
    for (const [event, kept] of [["pointerover", false], ["focusin", false], ["click", true]]) {
      this.root.addEventListener(event, ({ target }) => this.#pick(target, kept));
    }
    this.root.addEventListener("keydown", (event) => this.#moveFocus(event));
  }

  /** Draw a state. @param {import("./queue_state.js").QueueState} state */
  draw(state) {
    ringsOf(state).forEach((ring, place) => {
      if (!this.#rings.has(ring.id)) this.#rings.set(ring.id, new RingDrawing(this.root, ring, place));
      this.#rings.get(ring.id).draw(ring);
    });
  }

  #pick(target, kept) {
    const found = target.closest?.("[data-slot]");
    if (found) this.#picked(found.arc, kept);
  }

  #moveFocus(event) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const current = event.target.closest?.("[data-slot]");
    if (event.key === "Enter") this.#pick(event.target, true);
    if (!step || !current) return;
    event.preventDefault();
    const all = [...current.parentNode.children], next = all.at((all.indexOf(current) + step) % all.length);
    current.setAttribute("tabindex", -1);
    next.setAttribute("tabindex", 0);
    next.focus();
  }
}

class RingDrawing {
  #arcs = svg("g");
  #pointers = svg("g", { class: "pointers" });
  #texts;
  #byPlace = new Map();
  #byName = new Map();

  constructor(root, { id, title, clause }, place) {
    this.#texts = [-20, 5, 28].map((y) => svg("text", { y, class: y < 0 ? "ring-title" : "ring-note" }));
    this.#texts[0].textContent = title;
    this.#texts[1].textContent = `VIRTIO 1.2, ${clause}`;
    const group = svg("g", {
      class: "ring", "data-ring": id, role: "group", "aria-label": title,
      transform: `translate(${FIRST + PITCH * place} ${SIDE / 2})`,
    }, this.#arcs, this.#pointers, ...this.#texts);
    root.append(group);
  }

  draw({ size, arcs, pointers }) {
    this.#texts[2].textContent = size ? `${size} entries` : "not set up";
    keep(this.#byPlace, arcs, ({ first, last }) => `${first}-${last}`, makeArc, this.#arcs).forEach(drawArc);
    const all = [...this.#arcs.children];
    if (all.length && !all.some((each) => each.getAttribute("tabindex") === "0")) all[0].setAttribute("tabindex", 0);
    spread(pointers);
    keep(this.#byName, pointers, ({ name }) => name, makePointer, this.#pointers).forEach(drawPointer);
  }
}

/** Keep the elements of the data that stay, in the order of the data; return [element, datum] pairs. */
function keep(known, data, keyOf, make, parent) {
  const before = new Map(known);
  known.clear();
  const pairs = data.map((datum) => {
    const key = keyOf(datum), found = before.get(key) ?? make(datum);
    before.delete(key);
    known.set(key, found);
    return [found, datum];
  });
  for (const gone of before.values()) gone.remove();
  pairs.forEach(([found], place) => {
    if (parent.children[place] !== found) parent.insertBefore(found, parent.children[place] ?? null);
  });
  return pairs;
}

function makeArc() {
  return svg("g", { role: "img", tabindex: -1 }, svg("path", { class: "fill" }), svg("path", { class: "pattern" }), svg("text"));
}

function drawArc([group, arc]) {
  const { first, last, from, to, chain, label, detail } = arc, isRun = first !== last;
  const owner = isRun ? "run" : (chain?.owner ?? "driver");
  const says = isRun ? detail : `${detail}; ${chain ? `buffer ${chain.head}, ` : ""}${OWNERS[owner]}`;
  setAttributes(group, {
    class: `arc ${owner} ${chain ? `chain-${colorOf(chain)}` : ""}`, "aria-label": says,
    "data-slot": first, "data-owner": owner, "data-head": chain ? chain.head : "",
  });
  group.arc = arc;
  const [fill, pattern, text] = group.children, path = arcPath(from, to);
  fill.setAttribute("d", path);
  pattern.setAttribute("d", path);
  const [x, y] = polar((from + to) / 2, (OUTER + INNER) / 2);
  setAttributes(text, { x, y });
  const length = (to - from) * Math.PI * (OUTER + INNER);
  text.style.fontSize = `${Math.min(17, length / 1.3)}px`;
  text.textContent = isRun ? "…" : length >= LEAST_LABEL ? label : "";
}

function makePointer({ name, says, side }) {
  const mark = svg("path", { class: "mark", d: `M0 ${-OUTER - 3} l-6 -13 h12 z` });
  return svg("g", { class: `pointer ${side}`, role: "img", "data-pointer": name }, svg("title", {}, says), mark, svg("text"));
}

function drawPointer([group, { name, says, side, value, at, lift }]) {
  const [, mark, text] = group.children, [x, y] = polar(at, LABEL);
  setAttributes(group, { "data-value": value, "aria-label": `${name} of the ${side} ${value}: ${says}` });
  // The shorter way round, so that a pointer does not turn back over the whole ring at its end.
  const before = group.turns ?? at, turns = before + ((((at - before) % 1) + 1.5) % 1) - 0.5;
  group.turns = turns;
  mark.style.transform = `rotate(${turns}turn)`;
  setAttributes(text, { x, y: y + 4 + (y < 0 ? -lift : lift) });
  text.style.textAnchor = x < -20 ? "end" : x > 20 ? "start" : "middle";
  text.textContent = `${name} ${value}`;
}

/** Lift the labels of pointers that are at nearly the same angle, so that all can be read. */
function spread(pointers) {
  pointers.forEach((each, i) => {
    const near = pointers.slice(0, i).filter((other) => Math.abs(other.at - each.at) < 0.03);
    each.lift = near.length ? Math.max(...near.map((other) => other.lift)) + 20 : 0;
  });
}

/** Return the point at `turn` clockwise from the top. */
function polar(turn, radius) {
  const angle = turn * 2 * Math.PI;
  return [Math.sin(angle) * radius, -Math.cos(angle) * radius];
}

/** Return the outline of a part of a ring, with a gap to its neighbours. */
function arcPath(from, to) {
  const gap = Math.min(0.0012, (to - from) / 6), last = Math.min(to, from + 0.9999);
  const point = (turn, radius) => polar(turn, radius).map((value) => value.toFixed(2)).join(" ");
  const large = last - from > 0.5 ? 1 : 0, [a, b] = [from + gap, last - gap];
  return `M${point(a, OUTER)} A${OUTER} ${OUTER} 0 ${large} 1 ${point(b, OUTER)}`
    + ` L${point(b, INNER)} A${INNER} ${INNER} 0 ${large} 0 ${point(a, INNER)} Z`;
}

/** Return the patterns of the owners: stripes for used, dots for available. */
function patterns() {
  const stripes = svg("path", { d: "M-1 1 l2 -2 M0 8 l8 -8 M7 9 l2 -2", class: "stroke" });
  const dots = svg("circle", { cx: 3, cy: 3, r: 1.5, class: "dot" });
  return svg("defs", {},
    svg("pattern", { id: "stripes", width: 8, height: 8, patternUnits: "userSpaceOnUse" }, stripes),
    svg("pattern", { id: "dots", width: 6, height: 6, patternUnits: "userSpaceOnUse" }, dots));
}
