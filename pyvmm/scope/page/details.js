// SPDX-License-Identifier: Apache-2.0
/** The selected event in words, beside every view: its fields with their meaning and units. */

import { element, onFrame } from "./elements.js";
import { keyList } from "./keys.js";

/** Fill `root` with the selected event of `scope`, whenever that changes. */
export function create(root, scope) {
  const { store, selection } = scope;
  const draw = onFrame(() => root.replaceChildren(...contents(scope)));
  let shown = null;
  const drawChange = () => {
    const event = selection.event;
    if (event?.index !== shown) draw();
    shown = event?.index;
  };
  selection.subscribe(draw);
  store.subscribe(drawChange); // the selected event may have been forgotten
  draw();
}

function contents(scope) {
  const { selection, format } = scope, event = selection.event;
  if (!event) {
    return [
      element("p", { class: "hint" }, "Select an event to see its fields: click it, or press j."),
      element("dl", { class: "key-list", "aria-label": "Keys" }, ...keyList()),
    ];
  }
  const { title, place, meaning, fields } = scope.describe(event);
  const step = (text, direction, wanted, label) => {
    const button = element("button", { type: "button", title: label, "aria-label": label }, text);
    button.addEventListener("click", () => selection.move(wanted, direction));
    return button;
  };
  const same = (type) => type.kind === event.kind && type.device === event.device && type.queue === event.queue;
  return [
    element("h2", {}, title),
    element("p", { class: "place" }, place),
    element("p", { class: "meaning" }, meaning),
    element("dl", { class: "facts" },
      element("dt", {}, "time"), element("dd", {}, format.time(event.timeNs)),
      element("dt", {}, "number"), element("dd", {}, format.count(event.seq))),
    element("dl", { class: "fields" }, ...fields.flatMap(({ name, text, meaning: says }) => [
      element("dt", {}, name),
      element("dd", {}, element("b", {}, text), element("small", {}, says)),
    ])),
    element("div", { class: "steps" },
      step("← same", -1, same, "Previous event of this kind and place (K)"),
      step("same →", 1, same, "Next event of this kind and place (J)")),
  ];
}
