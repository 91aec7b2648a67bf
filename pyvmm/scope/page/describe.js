// SPDX-License-Identifier: Apache-2.0
/** Events in words: the meaning of a kind and of its fields, from the reference of the server. */

import { fieldValue, printable } from "./format.js";

/**
 * @typedef {{name: string, text: string, meaning: string}} DescribedField
 * @typedef {{title: string, place: string, meaning: string, fields: DescribedField[]}} Description
 */

/** Return the function that describes an event, given `kinds` of the source. */
export function describer(kinds) {
  const known = new Map(kinds.map((kind) => [kind.name, kind]));
  return (event) => {
    const kind = known.get(event.kind) ?? { meaning: "", fields: {} };
    const fields = Object.entries(event.fields)
      .filter(([name]) => name !== "device" && name !== "queue")
      .map(([name, value]) => ({
        name: printable(name),
        text: fieldValue(name, value),
        meaning: Object.hasOwn(kind.fields, name) ? plain(kind.fields[name]) : "",
      }));
    return { title: printable(event.kind), place: placeOf(event), meaning: plain(kind.meaning), fields };
  };
}

/** Return the text of the reference without its marks for code. */
function plain(text) {
  return text.replaceAll("`", "");
}

/** Return device and queue of an event or type, "machine" without. */
export function placeOf({ device, queue }) {
  return printable([device || "machine", queue].filter(Boolean).join(" "));
}

/** Return the fields of an event in one line. */
export function summary(event) {
  return Object.entries(event.fields)
    .filter(([name]) => name !== "device" && name !== "queue")
    .map(([name, value]) => `${printable(name)}=${fieldValue(name, value)}`)
    .join("  ");
}
