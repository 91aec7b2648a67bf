// SPDX-License-Identifier: Apache-2.0
/**
 * A function for the scope's page: do what `script` says, one step a frame, and return the
 * milliseconds between the frames, and how many different pictures there were. `steps` is the number
 * of steps of each part.
 */
async ([script, steps]) => {
  const frame = () => new Promise(requestAnimationFrame);
  const canvas = document.querySelector(".timeline-canvas"), list = document.querySelector(".event-list");
  const wheel = (deltaY, shiftKey = false) => {
    const { left, width, top } = canvas.getBoundingClientRect();
    canvas.dispatchEvent(new WheelEvent("wheel", {
      deltaY, shiftKey, cancelable: true, clientX: left + 0.6 * width, clientY: top + 40,
    }));
  };
  const repeat = (act, count = steps) => Array.from({ length: count }, (_, i) => () => act(i));
  const all = list.scrollHeight - list.clientHeight, zooms = [1, 2, 3];
  const { work, picture } = {
    timeline: {
      work: [
        ...zooms.flatMap(() => [...repeat(() => wheel(-120)), ...repeat(() => wheel(60, true))]),
        ...repeat(() => wheel(120), zooms.length * steps),
      ],
      picture: () => canvas.ariaLabel,
    },
    list: {
      work: [
        ...repeat(() => (list.scrollTop += 60), 3 * steps),
        ...repeat((i) => (list.scrollTop = (all * i) / (3 * steps)), 3 * steps),
        ...repeat(() => (list.scrollTop -= 300), 3 * steps),
      ],
      picture: () => list.querySelector(".row").textContent,
    },
  }[script];
  const times = [], pictures = new Set();
  let before = await frame();
  for (const act of work) {
    act();
    const now = await frame();
    times.push(now - before);
    before = now;
    pictures.add(picture());
  }
  return [times, pictures.size];
}
