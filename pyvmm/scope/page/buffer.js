// SPDX-License-Identifier: Apache-2.0
/**
 * One buffer of a queue in detail: its chain of descriptors, its bytes in hexadecimal, and what the
 * device's codec makes of them, with the clause of the specification. Pointing at a decoded field
 * marks its bytes. Bytes come from a guest that runs; a recording has descriptors only.
 */

import { decodeBase64 } from "./decode.js";
import { element } from "./elements.js";
import { hex, printable, size } from "./format.js";
import { flagNames, NEXT, OWNERS } from "./queue_state.js";

const ROW_BYTES = 16;

/** Fills `root` with the buffer that was picked. */
export class BufferPanel {
  #root;
  #source;
  #shown = ""; // the buffer whose bytes are shown, or asked for

  constructor(root, source) {
    this.#root = root;
    this.#source = source;
    this.show(null);
  }

  /**
   * Show `chain` of the queue, or a hint if it is null. `bytes` is true if they are to be read from
   * guest memory.
   */
  show(chain, { device, queue, bytes = false } = {}) {
    const key = JSON.stringify([device, queue, chain?.head, chain?.owner, chain?.availIndex, chain?.usedIndex, bytes]);
    if (chain && key === this.#shown) return;
    this.#shown = key;
    if (!chain) {
      this.#root.replaceChildren(element("p", { class: "hint" }, "Point at an entry of a ring to see its buffer."));
      return;
    }
    const place = element("div", { class: "bytes" });
    this.#root.replaceChildren(...chainParts(chain), place);
    if (bytes) this.#read(place, key, { device, queue, head: chain.head });
    else place.append(element("p", { class: "hint" }, "The bytes of buffers are not in the events: they are shown for a guest that runs."));
  }

  async #read(place, key, question) {
    try {
      const answer = await this.#source.get("buffer", question);
      if (key === this.#shown) place.replaceChildren(...bytesParts(answer));
    } catch (error) {
      if (key === this.#shown) place.replaceChildren(element("p", { class: "fault" }, printable(error.message)));
    }
  }
}

function chainParts({ head, owner, descriptors, usedLength }) {
  const written = usedLength === null ? "" : `; ${size(usedLength)} written`;
  return [
    element("h3", {}, `Buffer ${head}`),
    element("p", {}, `${OWNERS[owner]}${written}`),
    table(["", "index", "address", "length", "flags", "next"], descriptors.map((each) => [
      each.table ? "indirect" : "", String(each.index), hex(each.gpa), size(each.length), flagNames(each.flags),
      each.flags & NEXT ? String(each.next) : "",
    ])),
  ];
}

/** Return a table with the given head and rows of texts. */
export function table(head, rows, properties = {}) {
  return element("table", properties,
    element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((text) =>
      element("td", { class: text.length > 40 ? "long" : "" }, text))))));
}

function bytesParts({ descriptors, readable, writable, described }) {
  const indirect = descriptors.filter((each) => each.table_gpa);
  const parts = [["readable", "Device-readable bytes", readable], ["writable", "Device-writable bytes", writable]];
  const found = parts.filter(([, , text]) => text).flatMap(([part, title, text]) =>
    partOf(title, decodeBase64(text), described.filter((field) => field.part === part)));
  const tables = indirect.length ? [element("p", {}, `${indirect.length} descriptors in the indirect table at ${hex(indirect[0].table_gpa)}`)] : [];
  return [...tables, ...(found.length ? found : [element("p", { class: "hint" }, "The buffer has no bytes.")])];
}

function partOf(title, bytes, fields) {
  const dump = hexDump(bytes);
  const rows = fields.map((field) => {
    const mark = (on) => () => dump.mark(field.offset, field.length, on);
    const row = element("tr", { tabIndex: 0, class: "decoded" },
      element("th", { scope: "row" }, printable(field.name)), element("td", {}, printable(field.value)),
      element("td", { class: "clause" }, printable(field.clause)));
    for (const [event, on] of [["pointerenter", true], ["focus", true], ["pointerleave", false], ["blur", false]]) {
      row.addEventListener(event, mark(on));
    }
    return row;
  });
  const decoded = rows.length ? [element("table", { class: "fields-decoded" }, element("tbody", {}, ...rows))] : [];
  return [element("h4", {}, `${title}: ${size(bytes.length)}`), ...decoded, dump.element];
}

/** Return the bytes in rows of 16, and a function that marks some of them. */
function hexDump(bytes) {
  const cells = Array.from(bytes, (byte) => element("span", {}, byte.toString(16).padStart(2, "0") + " "));
  const rows = [];
  for (let at = 0; at < bytes.length; at += ROW_BYTES) {
    const text = Array.from(bytes.subarray(at, at + ROW_BYTES), (byte) => (byte > 31 && byte < 127 ? String.fromCharCode(byte) : "·"));
    const gap = "   ".repeat(ROW_BYTES - text.length);
    rows.push(element("span", { class: "offset" }, at.toString(16).padStart(4, "0") + "  "),
      ...cells.slice(at, at + ROW_BYTES), gap + " " + text.join("") + "\n");
  }
  const mark = (offset, length, on) => {
    for (const cell of cells.slice(offset, offset + length)) cell.classList.toggle("marked", on);
  };
  return { element: element("pre", { class: "hex", tabIndex: 0, "aria-label": "Bytes" }, ...rows), mark };
}
