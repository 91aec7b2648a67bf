// SPDX-License-Identifier: Apache-2.0
/**
 * The initialisation of a device (VIRTIO 1.2, 3.1.1) as steps, from the events of its handshake.
 * Each step has the clause of the specification that it follows, or breaks.
 */

import { duration, hex } from "./format.js";

const SPEC = "VIRTIO 1.2, ";
const BITS = [
  [1, "ACKNOWLEDGE", "The guest has found the device", "3.1.1, step 2"],
  [2, "DRIVER", "The guest has a driver for it", "3.1.1, step 3"],
  [8, "FEATURES_OK", "The choice of features is complete", "3.1.1, step 5"],
  [4, "DRIVER_OK", "The driver is ready: the device is live", "3.1.1, step 8"],
  [128, "FAILED", "The driver has given the device up", "2.1"],
  [64, "DEVICE_NEEDS_RESET", "The device asks for a reset", "2.1.2"],
];

/** The kinds of events that are steps. */
export const KINDS = new Set([
  "status", "features", "features_refused", "features_too_late", "status_refused", "queue_live",
  "queue_reset", "needs_reset",
]);

/**
 * @typedef {object} Step
 * @property {number} index of its event
 * @property {number} timeNs
 * @property {"driver" | "device"} from who sends
 * @property {string} title
 * @property {string} text
 * @property {string} clause
 * @property {boolean} [failed] the step breaks a rule, or reports a fault
 * @property {{name: string, state: "accepted" | "refused" | "unknown"}[]} [features]
 */

/** Return the steps that an event of one of `KINDS` stands for. @returns {Step[]} */
export function stepsOf(event) {
  const { kind, fields, index, timeNs } = event, step = (properties) => ({ index, timeNs, from: "driver", ...properties });
  switch (kind) {
    case "status":
      return statusSteps(fields).map(step);
    case "features":
      return featureSteps(fields).map(step);
    case "features_refused":
      return [step({
        from: "device", title: "FEATURES_OK refused", text: `${fields.why}`, clause: `${SPEC}3.1.1, step 6`,
        failed: true, features: names(fields.accepted).map((name) => ({ name, state: "unknown" })),
      })];
    case "features_too_late":
      return [step({
        title: "Features written too late", text: `${number(fields.bits)} after FEATURES_OK, ignored`,
        clause: `${SPEC}2.2`, failed: true,
      })];
    case "status_refused":
      return [step({
        title: "Status out of order", text: `${number(fields.written)} written, ignored`,
        clause: `${SPEC}3.1.1`, failed: true,
      })];
    case "queue_live":
      return [step({
        title: queueName(fields.queue, "Queue"),
        text: `number ${fields.index}, ${fields.size} entries; descriptors ${number(fields.desc_gpa)},`
          + ` available ring ${number(fields.driver_gpa)}, used ring ${number(fields.device_gpa)}`,
        clause: `${SPEC}3.1.1, step 7; 4.1.5.1.3`,
      })];
    case "queue_reset":
      return [step({ title: `Reset of ${queueName(fields.queue)}`, text: "", clause: `${SPEC}2.6.1` })];
    default:
      return [step({
        from: "device", title: "DEVICE_NEEDS_RESET", text: `${queueName(fields.queue)}: ${fields.why}`,
        clause: `${SPEC}2.1.2`, failed: true,
      })];
  }
}

/** Return a step for each bit of the device status that was set, or one for a reset. */
function statusSteps({ before, status }) {
  if (!status) return [{ title: "Reset", text: "The device status is 0", clause: `${SPEC}2.4; 3.1.1, step 1` }];
  return BITS.filter(([bit]) => Number(status) & bit && !(Number(before) & bit)).map(([bit, title, text, clause]) => ({
    from: bit === 64 ? "device" : "driver", title, text, clause: SPEC + clause, failed: bit >= 64,
  }));
}

function featureSteps({ offered_names: offered, accepted_names: accepted }) {
  const chosen = new Set(names(accepted)), all = names(offered);
  const features = all.map((name) => ({ name, state: chosen.has(name) ? "accepted" : "refused" }));
  for (const name of chosen) if (!all.includes(name)) features.push({ name, state: "unknown" });
  return [
    { from: "device", title: "Features offered", text: `${all.length} features`, clause: `${SPEC}2.2` },
    { title: "Features accepted", text: `${chosen.size} of ${all.length}`, clause: `${SPEC}2.2; 3.1.1, step 4`, features },
  ];
}

/** Return the name of a queue with the word before it, which some names, such as "queue 2", begin with. */
function queueName(name, word = "queue") {
  return `${word} ${String(name).replace(/^queue /, "")}`;
}

function names(text) {
  return String(text ?? "").split("|").map((name) => name.trim()).filter((name) => name && name !== "none");
}

function number(value) {
  return value === undefined ? "?" : hex(value);
}

/** Return the time since the step before, such as "+12 µs". */
export function since(step, before) {
  return before ? `+${duration(step.timeNs - before.timeNs)}` : "";
}
