// SPDX-License-Identifier: Apache-2.0
/**
 * Draw the timeline on a canvas. While many events can be seen, a lane is a row of bars whose
 * height says how many fall on a pixel (density.js); when there are few, each event is a mark whose
 * shape says its kind, and an arc leads from each `chain` to its `used`.
 */

import { canvasContext, rem } from "./elements.js";
import { duration, printable, time } from "./format.js";
import { color } from "./theme.js";

/** Up to so many events are drawn as marks. */
const MAX_MARKS = 1500;
/** The part of a row that the bar of a single event takes at least. */
const LEAST_BAR = 0.25;
const STEPS = [1, 2, 5];

/** @typedef {{left: number, top: number, width: number, row: number, height: number}} Layout in CSS pixels */

/** Return where things are on a canvas `width` wide with `rows` rows. @returns {Layout} */
export function layout(width, rows) {
  const unit = rem(), left = 11.5 * unit, row = (rows > 24 ? 1.25 : 1.6) * unit, top = 2 * unit;
  return { left, top, row, width: Math.max(Math.floor(width - left - unit), 1), height: top + Math.max(rows, 1) * row + 0.5 * unit };
}

/** Return whether each event is a mark; otherwise there are too many, and bars say how many. */
export function showsMarks({ store, view }) {
  return store.indexAt(view.to) - store.indexAt(view.from) <= MAX_MARKS;
}

/**
 * Draw everything.
 * @param {HTMLCanvasElement} canvas
 * @param {{store, selection, lanes, density, view, drag: [number, number] | null, lane: Layout}} state
 */
export function draw(canvas, state) {
  const pen = canvasContext(canvas), { lane: at, view, store } = state;
  pen.clearRect(0, 0, canvas.clientWidth, canvas.clientHeight);
  pen.font = `${0.857 * rem()}px ${getComputedStyle(document.body).fontFamily}`;
  pen.textBaseline = "middle";
  drawAxis(pen, state);
  drawRows(pen, state);
  if (store.count) {
    pen.save();
    pen.beginPath();
    pen.rect(at.left, 0, at.width, at.height);
    pen.clip();
    if (showsMarks(state)) drawMarks(pen, state);
    else drawDensity(pen, state);
    drawSelection(pen, state);
    pen.restore();
  }
}

function drawAxis(pen, { lane: at, view }) {
  const least = (view.span / at.width) * 7 * rem();
  const power = 10 ** Math.floor(Math.log10(least));
  const step = power * (STEPS.find((each) => each * power >= least) ?? 10);
  pen.textAlign = "left";
  for (let ns = Math.ceil(view.from / step) * step; ns <= view.to; ns += step) {
    const x = Math.round(at.left + ((ns - view.from) / view.span) * at.width) + 0.5;
    pen.fillStyle = color("grid");
    pen.fillRect(x - 0.5, at.top - 4, 1, at.height);
    pen.fillStyle = color("muted");
    pen.fillText(tick(ns, step), x + 4, at.top / 2);
  }
}

/** Return the time of a tick, with the digits that `step` needs. */
function tick(ns, step) {
  if (ns === 0) return "0";
  const [unit, size] = step >= 1e8 ? ["s", 1e9] : step >= 1e5 ? ["ms", 1e6] : step >= 100 ? ["µs", 1e3] : ["ns", 1];
  return `${(ns / size).toFixed(Math.max(0, Math.ceil(-Math.log10(step / size) - 1e-9)))} ${unit}`;
}

function drawRows(pen, { lanes, lane: at }) {
  let group = null;
  const unit = rem();
  lanes.rows.forEach((row, i) => {
    const y = at.top + i * at.row;
    if (row.group !== group || !row.group) {
      pen.fillStyle = color("line");
      pen.fillRect(0, Math.round(y), at.left + at.width + unit, 1);
      pen.fillStyle = color("text");
      pen.textAlign = "left";
      pen.fillText(printable(row.group || row.label).slice(0, 20), unit, y + at.row / 2, 6 * unit);
    }
    if (row.group && row.label) {
      pen.fillStyle = color("muted");
      pen.textAlign = "right";
      pen.fillText(printable(row.label).slice(0, 24), at.left - 0.6 * unit, y + at.row / 2, 5.2 * unit);
    }
    group = row.group;
  });
}

function drawDensity(pen, { lanes, density, lane: at, view }) {
  const { width } = at, counts = density.counts(view.from, view.to, width);
  lanes.rows.forEach((row, i) => {
    const sums = row.lanes.length === 1
      ? counts.subarray(row.lanes[0] * width, (row.lanes[0] + 1) * width)
      : Uint32Array.from({ length: width }, (_, x) => row.lanes.reduce((sum, id) => sum + counts[id * width + x], 0));
    const scale = 1 / Math.log2(1 + Math.max(sums.reduce((a, b) => Math.max(a, b), 0), 15));
    const floor = at.top + (i + 1) * at.row - 2, full = at.row - 5;
    pen.fillStyle = color(row.color);
    for (let x = 0, run = 0; x < width; x += run) {
      for (run = 1; x + run < width && sums[x + run] === sums[x]; run++);
      if (!sums[x]) continue;
      const height = Math.round(full * (LEAST_BAR + (1 - LEAST_BAR) * Math.log2(1 + sums[x]) * scale));
      pen.fillRect(at.left + x, floor - height, Math.max(run, 2), height);
    }
  });
}

function drawMarks(pen, { store, lanes, lane: at, view }) {
  const from = store.indexAt(view.from), to = store.indexAt(view.to), size = Math.min(at.row / 4, 5);
  const taken = new Map(), labelled = new Map();
  for (let index = from; index < to; index++) {
    const type = store.typeAt(index), place = lanes.rowOf(lanes.ofType[type.id]), row = lanes.rows[place];
    const x = at.left + ((store.timeAt(index) - view.from) / view.span) * at.width;
    const y = at.top + (place + 0.5) * at.row;
    pen.fillStyle = pen.strokeStyle = color(row.color);
    if (type.kind === "chain" || type.kind === "used") drawArc(pen, store.event(index), x, y, taken, at.row);
    mark(pen, type.kind, x, y, size);
    const end = labelled.get(place) ?? -Infinity, next = x + 10;
    if (to - from <= 60 && next > end) {
      pen.fillStyle = color("muted");
      pen.textAlign = "left";
      const text = printable(type.kind).slice(0, 24);
      pen.fillText(text, x + size + 3, y);
      labelled.set(place, x + size + 8 + pen.measureText(text).width);
    }
  }
}

/** Draw the arc that ends at a `used`; remember where a `chain` was. */
function drawArc(pen, event, x, y, taken, height) {
  const key = JSON.stringify([event.device, event.queue, String(event.fields.head)]);
  if (event.kind === "chain") return taken.set(key, x);
  const from = taken.get(key);
  taken.delete(key);
  if (from === undefined || x - from < 3) return;
  pen.lineWidth = 1.25;
  pen.beginPath();
  pen.moveTo(from, y);
  pen.bezierCurveTo(from, y - height * 0.62, x, y - height * 0.62, x, y);
  pen.stroke();
}

/** Draw the mark of a kind: triangles are notifications, circles buffers, a square a descriptor. */
function mark(pen, kind, x, y, size) {
  pen.beginPath();
  if (kind === "notified" || kind === "interrupt" || kind === "used_notification") {
    const way = kind === "notified" ? size : -size;
    pen.moveTo(x - size, y - way);
    pen.lineTo(x + size, y - way);
    pen.lineTo(x, y + way);
    pen.fill();
  } else if (kind === "chain") {
    pen.arc(x, y, size, 0, 7);
    pen.fill();
  } else if (kind === "used") {
    pen.lineWidth = 1.75;
    pen.arc(x, y, size - 1, 0, 7);
    pen.stroke();
  } else if (kind === "descriptor") {
    pen.fillRect(x - size / 2, y - size / 2, size, size);
  } else {
    pen.fillRect(x - 1, y - size * 1.3, 2, size * 2.6);
  }
}

function drawSelection(pen, { store, selection, lanes, lane: at, view, drag }) {
  if (drag) {
    const [from, to] = [Math.min(...drag), Math.max(...drag)];
    pen.globalAlpha = 0.25;
    pen.fillStyle = color("accent");
    pen.fillRect(from, 0, to - from, at.height);
    pen.globalAlpha = 1;
    pen.fillStyle = color("text");
    pen.textAlign = "center";
    pen.fillText(duration(((to - from) / at.width) * view.span), (from + to) / 2, at.top / 2 + 1);
  }
  const event = selection.event;
  if (!event) return;
  const x = Math.round(at.left + ((event.timeNs - view.from) / view.span) * at.width);
  const row = lanes.rowOf(lanes.ofType[store.typeAt(event.index).id]);
  pen.fillStyle = pen.strokeStyle = color("selected");
  pen.fillRect(x, at.top - 4, 1, at.height);
  pen.lineWidth = 2;
  pen.strokeRect(x - 6, at.top + (row + 0.5) * at.row - 7, 13, 14);
}

/** Return a description of what the canvas shows, for those who do not see it. */
export function inWords({ store, view, lanes }) {
  const shown = store.indexAt(view.to) - store.indexAt(view.from);
  return `${shown} events in ${lanes.rows.length} lanes from ${time(view.from)} to ${time(view.to)}`;
}
