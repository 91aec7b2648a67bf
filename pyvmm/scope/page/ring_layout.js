// SPDX-License-Identifier: Apache-2.0
/**
 * Where the entries of a virtqueue are on its three rings, as angles.
 *
 * A ring of at most `ALL_ENTRIES` entries has an arc for each. In a larger one, an arc is for an
 * entry that matters, or for a run of others, which is drawn as if it were two; at most `MOST_ARCS`
 * entries matter, the newest ones.
 *
 * @typedef {{first: number, last: number, from: number, to: number, chain: object | null,
 *   label: string, detail: string}} Arc  entries `first` to `last` at the angles `from` to `to`, in
 *   turns clockwise from the top; a run has `first < last` and no chain
 * @typedef {{name: string, says: string, value: number, slot: number, at: number, side: string}} Pointer
 *   an index of the ring, of the driver or the device, at the angle `at`
 * @typedef {{id: string, title: string, clause: string, size: number, arcs: Arc[], pointers: Pointer[]}} Ring
 */

import { chainsByDescriptor } from "./queue_state.js";

const ALL_ENTRIES = 64;
const MOST_ARCS = 80;

/** Return the rings of a queue: descriptor table, available ring, used ring. @returns {Ring[]} */
export function ringsOf(state) {
  return [descriptorRing(state), availableRing(state), usedRing(state)];
}

function descriptorRing(state) {
  const chains = chainsByDescriptor(state);
  const newestFirst = [...state.chains].reverse().flatMap((chain) => chain.members);
  return ring("descriptors", "Descriptor table", "2.7.5", state, newestFirst, [], (index) => ({
    chain: chains.get(index) ?? null, label: String(index), detail: `descriptor ${index}`,
  }));
}

function availableRing(state) {
  const { size, nextAvail, availIdx, availEvent } = state;
  const inRing = new Map(state.chains.filter((chain) => chain.availIndex !== null)
    .map((chain) => [chain.availIndex % size, chain]));
  const pointers = [
    pointer("idx", "the driver puts the next buffer here", availIdx, size, "driver"),
    pointer("next", "the device takes the next buffer here", nextAvail, size, "device"),
    pointer("avail_event", "the device waits for a buffer here (EVENT_IDX)", availEvent, size, "device"),
  ];
  return ring("available", "Available ring", "2.7.6", state, [...inRing.keys()].reverse(), pointers, (slot) => ({
    chain: inRing.get(slot) ?? null,
    label: state.availRing.has(slot) ? String(state.availRing.get(slot)) : "",
    detail: state.availRing.has(slot) ? `slot ${slot}: head ${state.availRing.get(slot)}` : `slot ${slot}`,
  }));
}

function usedRing(state) {
  const { size, usedIdx, usedEvent } = state;
  const inRing = new Map(state.chains.filter((chain) => chain.usedIndex !== null)
    .map((chain) => [chain.usedIndex % size, chain]));
  const pointers = [
    pointer("idx", "the device puts the next buffer here", usedIdx, size, "device"),
    pointer("used_event", "the driver waits for a buffer here (EVENT_IDX)", usedEvent, size, "driver"),
  ];
  const text = (slot) => {
    const entry = state.usedRing.get(slot);
    return entry ? `slot ${slot}: head ${entry.head}, ${entry.length} bytes written` : `slot ${slot}`;
  };
  return ring("used", "Used ring", "2.7.8", state, [...inRing.keys()].reverse(), pointers, (slot) => ({
    chain: inRing.get(slot) ?? null,
    label: state.usedRing.has(slot) ? String(state.usedRing.get(slot).head) : "",
    detail: text(slot),
  }));
}

/** Return one pointer in a list; an index that is not known has none. */
function pointer(name, says, value, size, side) {
  return value === null || !size ? null : { name, says, value, slot: value % size, side };
}

function ring(id, title, clause, { size }, newestFirst, maybePointers, entry) {
  const pointers = maybePointers.filter(Boolean);
  const matters = new Set(pointers.map(({ slot }) => slot));
  for (const slot of newestFirst) {
    if (matters.size >= MOST_ARCS) break;
    if (slot < size) matters.add(slot);
  }
  const runs = size <= ALL_ENTRIES ? everyEntry(size) : entriesAndRuns(size, [...matters].sort((a, b) => a - b));
  const total = runs.reduce((sum, run) => sum + weight(run), 0);
  let at = 0;
  const arcs = runs.map(([first, last]) => {
    const from = at;
    at += weight([first, last]) / total;
    const run = { chain: null, label: "", detail: `${first} to ${last}: ${last - first + 1} entries` };
    return { first, last, from, to: at, ...(first === last ? entry(first) : run) };
  });
  for (const each of pointers) {
    const { from, to, first, last } = arcs.find((arc) => arc.first <= each.slot && each.slot <= arc.last);
    each.at = from + ((each.slot - first + 0.5) / (last - first + 1)) * (to - from);
  }
  return { id, title, clause, size, arcs, pointers };
}

function weight([first, last]) {
  return Math.min(last - first + 1, 2);
}

function everyEntry(size) {
  return Array.from({ length: size }, (_, slot) => [slot, slot]);
}

/** Return [first, last] of each arc: entries of `matters`, which ascend, and the runs between them. */
function entriesAndRuns(size, matters) {
  const arcs = [];
  let next = 0;
  for (const slot of [...matters, size]) {
    if (slot > next) arcs.push([next, slot - 1]);
    if (slot < size) arcs.push([slot, slot]);
    next = slot + 1;
  }
  return arcs;
}
