// SPDX-License-Identifier: Apache-2.0
/** The keys that work in every view, the list of all keys, and the field that jumps to a kind. */

import { element } from "./elements.js";
import { printable } from "./format.js";

const byId = (id) => document.getElementById(id);

const HELP = [
  ["1 – 5", "show a view"],
  ["← →", "the view beside, on the tabs"],
  ["j  k", "next, previous event"],
  ["J  K", "next, previous event of the same kind and place"],
  ["/", "jump to the next event of a kind; Enter again for the one after, Shift+Enter back"],
  ["+  -  0", "timeline: zoom in, out, show all"],
  ["h  l", "timeline: move to the left, to the right"],
  ["Home  End", "first, last event"],
  ["s  r", "a guest that runs: stop at the next event that is chosen, resume"],
  ["?", "these keys"],
];

/** Return the keys and their meaning, as terms and descriptions. */
export function keyList() {
  return HELP.flatMap(([names, meaning]) => [
    element("dt", {}, ...names.split(/\s{2}/).map((name) => element("kbd", {}, name))),
    element("dd", {}, meaning),
  ]);
}

/** Listen to the keys. @param {import("./main.js").Scope} scope */
export function create(scope, tabs) {
  byId("keys").append(...keyList());
  byId("help-button").addEventListener("click", () => byId("help").showModal());
  fillKinds(scope.store);
  byId("jump").addEventListener("submit", (event) => event.preventDefault());
  byId("jump-kind").addEventListener("keydown", (event) => {
    if (event.key === "Enter") jump(scope.selection, event.target, event.shiftKey ? -1 : 1);
    if (event.key === "Escape") event.target.blur();
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || byId("help").open || takesText(event.target)) return;
    if (act(event.key, scope, tabs)) event.preventDefault();
  });
}

/** Do what `key` asks for; return whether it asks for anything. */
function act(key, { store, selection }, tabs) {
  const any = () => true, chosen = selection.event;
  const same = (type) => !chosen || (type.kind === chosen.kind && type.device === chosen.device && type.queue === chosen.queue);
  const actions = {
    j: () => selection.move(any, 1),
    k: () => selection.move(any, -1),
    J: () => selection.move(same, 1),
    K: () => selection.move(same, -1),
    Home: () => selection.set(store.first),
    End: () => selection.set(store.end - 1),
    "/": () => byId("jump-kind").select(),
    "?": () => byId("help").showModal(),
  };
  if (/^[1-9]$/.test(key)) tabs.openAt(Number(key) - 1);
  else if (Object.hasOwn(actions, key)) actions[key]();
  else return false;
  return true;
}

function jump(selection, input, direction) {
  const found = selection.move((type) => type.kind === input.value || type.name === input.value, direction);
  input.setCustomValidity(found ? "" : "There is no further event of this kind");
  input.reportValidity();
}

/** Offer the kinds that occur. */
function fillKinds(store) {
  let known = 0;
  const kinds = new Set();
  const fill = () => {
    for (; known < store.types.list.length; known++) {
      const { kind } = store.types.list[known];
      if (kinds.size >= 200 || kinds.has(kind)) continue;
      kinds.add(kind);
      byId("kinds").append(element("option", { value: kind }, printable(kind)));
    }
  };
  store.subscribe(fill);
  fill();
}

function takesText(target) {
  return target.matches?.("input, select, textarea, [contenteditable]") ?? false;
}
