// SPDX-License-Identifier: Apache-2.0
/** The status bar: the state of the source, numbers of events, the guest's memory, notes. */

import { element, onFrame } from "./elements.js";
import { count, printable, size } from "./format.js";

const STATES = {
  loading: "Loading",
  live: "Live",
  complete: "Recording",
  ended: "The connection has ended",
};
const MAX_NOTES = 20;

const byId = (id) => document.getElementById(id);

/** Keep the status bar up to date. @param {import("./main.js").Scope} scope */
export function create({ store, source }) {
  const name = printable(source.info.name);
  byId("source-name").textContent = name;
  byId("source-name").title = name;
  document.title = `${name} – pyvmm scope`;
  const draw = onFrame(() => {
    byId("state").textContent = STATES[source.state];
    byId("state").dataset.state = source.state;
    const missing = store.dropped ? `, ${count(store.dropped)} missing` : "";
    const forgotten = store.first ? ` (the newest of ${count(store.end)})` : "";
    byId("counts").textContent = `${count(store.count)} events${forgotten}${missing}`;
  });
  store.subscribe(draw);
  source.subscribe((_state, text) => {
    if (text) note(text);
    draw();
  });
  source.onMessage((message) => {
    if (message.type === "stats") byId("guest").textContent = guestText(message);
    if (message.type === "status" && message.error) note(message.error);
  });
  for (const text of source.info.notes) note(text);
  draw();
}

function guestText(stats) {
  const bytes = (key) => (Number.isFinite(stats[key]) ? size(stats[key]) : "unknown");
  return `${printable(stats.status)} · RSS ${bytes("rss-bytes")} · balloon ${bytes("balloon-actual")}`
    + ` of ${bytes("balloon-target")}`;
}

function note(text) {
  const notes = byId("notes");
  notes.append(element("span", {}, printable(text)));
  if (notes.children.length > MAX_NOTES) notes.firstChild.remove();
}
