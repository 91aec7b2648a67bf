// SPDX-License-Identifier: Apache-2.0
/**
 * Dark or light: as the browser asks, until the button chooses. Canvases take their colours from
 * the custom properties of style.css by `color`, and draw again when they change.
 */

const KEY = "pyvmm-scope-theme";
const changed = new Set();
const colors = new Map();
const dark = matchMedia("(prefers-color-scheme: dark)");

/** Return the colour of the custom property `--name`. */
export function color(name) {
  if (!colors.has(name)) {
    colors.set(name, getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim());
  }
  return colors.get(name);
}

/** Call `told` after the colours have changed. */
export function subscribe(told) {
  changed.add(told);
}

/** Exchange dark and light. */
export function toggle() {
  const isDark = (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  choose(isDark ? "light" : "dark");
  try {
    localStorage.setItem(KEY, isDark ? "light" : "dark");
  } catch {
    // A browser may refuse to keep anything: the choice then lasts as long as the page.
  }
}

/** Take the theme that was chosen last. */
export function restore() {
  let kept = null;
  try {
    kept = localStorage.getItem(KEY);
  } catch {
    // As above.
  }
  if (kept === "dark" || kept === "light") choose(kept);
  dark.addEventListener("change", refresh);
}

function choose(theme) {
  document.documentElement.dataset.theme = theme;
  refresh();
}

function refresh() {
  colors.clear();
  for (const told of changed) told();
}
