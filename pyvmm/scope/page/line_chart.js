// SPDX-License-Identifier: Apache-2.0
/** A small chart of a few lines over time, in bytes; each line is named at its end. */

import { svg } from "./svg.js";
import { size } from "./format.js";

const WIDTH = 420, HEIGHT = 180, LEFT = 76, RIGHT = 72, TOP = 12, BOTTOM = 24;

/**
 * Return a chart. A line has a `name`, the name of a `color`, and `points`, [milliseconds, bytes];
 * `at` is the time to mark, `most` the least upper end of the scale in bytes, `since` the latest
 * beginning of the scale of time.
 */
export function lineChart(lines, { at, most, since }) {
  const points = lines.flatMap((line) => line.points);
  const times = points.map(([time]) => time), from = Math.min(...times, at, since), to = Math.max(...times, at, from + 1);
  const top = Math.max(most, ...points.map(([, bytes]) => bytes), 1);
  const x = (time) => LEFT + ((time - from) / (to - from)) * (WIDTH - LEFT - RIGHT);
  const y = (bytes) => HEIGHT - BOTTOM - (bytes / top) * (HEIGHT - TOP - BOTTOM);
  const text = (value, place, anchor, name = "") => {
    const made = svg("text", { ...place, class: name });
    made.style.textAnchor = anchor;
    made.textContent = value;
    return made;
  };
  const grid = [0, 0.5, 1].flatMap((part) => [
    svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(top * part), y2: y(top * part), class: "grid" }),
    text(size(Math.round(top * part)), { x: LEFT - 6, y: y(top * part) }, "end"),
  ]);
  const drawn = lines.filter((line) => line.points.length).flatMap(({ name, color, points: own }, i) => {
    const path = svg("polyline", { points: own.map(([time, bytes]) => `${x(time).toFixed(1)},${y(bytes).toFixed(1)}`).join(" "), "data-line": name });
    path.style.stroke = `var(--${color})`;
    if (i) path.style.strokeDasharray = "5 3";
    const label = text(name, { x: WIDTH - RIGHT + 6, y: y(own.at(-1)[1]) + (i ? -7 : 7) }, "start");
    label.style.fill = `var(--${color})`;
    return [path, label];
  });
  const says = lines.filter((line) => line.points.length).map((line) => `${line.name} ${size(line.points.at(-1)[1])}`).join(", ");
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "line-chart", role: "img", "aria-label": `Over time: ${says}` },
    ...grid, svg("line", { x1: x(at), x2: x(at), y1: TOP, y2: HEIGHT - BOTTOM, class: "mark" }), ...drawn,
    text("0 s", { x: LEFT, y: HEIGHT - 8 }, "start"),
    text(`${((to - from) / 1e3).toFixed(1)} s`, { x: WIDTH - RIGHT, y: HEIGHT - 8 }, "end"));
}
