// SPDX-License-Identifier: Apache-2.0
/** Make elements. Text is always set as text, never as markup: it may come from the guest. */

/**
 * Return a new element with the given properties and children; a string child is a text. Of
 * `properties`, names with a dash and `role` are attributes, `class` is the class, the others are
 * properties of the element.
 */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") made.className = value;
    else if (name === "role" || name.includes("-")) made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

/**
 * Return a function that calls `draw` once before the next frame, however often it is called until
 * then.
 */
export function onFrame(draw) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      draw();
    });
  };
}

/**
 * Fit `canvas` to its element in device pixels, and return its context, scaled so that one unit is
 * a CSS pixel.
 */
export function canvasContext(canvas) {
  const ratio = devicePixelRatio, width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return context;
}

/** Return the size of 1 rem in CSS pixels, which follows the width of the window. */
export function rem() {
  return parseFloat(getComputedStyle(document.documentElement).fontSize);
}
