// SPDX-License-Identifier: Apache-2.0
/** Numbers, times and text as the page writes them. */

const BINARY = ["bytes", "KiB", "MiB", "GiB", "TiB"];
const HIDDEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu;

/** Return `text`, which may come from the guest, with escapes for what has no glyph of its own. */
export function printable(text) {
  return String(text).replace(HIDDEN, (char) => `\\u{${char.codePointAt(0).toString(16)}}`);
}

/** Return a count with thin spaces between thousands. */
export function count(value) {
  return String(value).replace(/\B(?=(\d{3})+$)/g, "\u2009");
}

/** Return bytes in the largest binary unit that has at most one decimal, such as "4 KiB". */
export function size(bytes) {
  let unit = 0, value = Number(bytes);
  while (value >= 1024 && unit < BINARY.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${Number.isInteger(value) ? value : value.toFixed(1)} ${unit || value !== 1 ? BINARY[unit] : "byte"}`;
}

/** Return a guest-physical address, or another number, as "0x1f000". */
export function hex(value) {
  return `0x${value.toString(16)}`;
}

/** Return nanoseconds as seconds, with nine decimals in groups: "1.234 567 890 s". */
export function time(ns) {
  const [whole, part] = (Math.max(ns, 0) / 1e9).toFixed(9).split(".");
  return `${count(whole)}.${part.replace(/(\d{3})(?=\d)/g, "$1\u2009")} s`;
}

/** Return a duration in nanoseconds in its natural unit, such as "12.3 µs". */
export function duration(ns) {
  for (const [unit, size] of [["s", 1e9], ["ms", 1e6], ["µs", 1e3]]) {
    if (Math.abs(ns) >= size) return `${Number((ns / size).toPrecision(4))} ${unit}`;
  }
  return `${Math.round(ns)} ns`;
}

/** Return the value of the field `name` of an event, with its unit. */
export function fieldValue(name, value) {
  if (typeof value === "string") return printable(value);
  if (name.endsWith("_bytes") || name === "length") return value >= 1024 ? `${size(value)} (${count(value)})` : size(value);
  if (name.endsWith("_ns")) return duration(Number(value));
  if (name.endsWith("_us")) return duration(Number(value) * 1e3);
  if (name.endsWith("pages")) return `${count(value)} (${size(Number(value) * 4096)})`;
  if (/gpa|address|bits|flags|status|offered|accepted|before|value|data|written/.test(name)) return hex(value);
  return count(value);
}
