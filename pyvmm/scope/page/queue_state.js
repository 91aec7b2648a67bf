// SPDX-License-Identifier: Apache-2.0
/**
 * The state of one split virtqueue (VIRTIO 1.2, 2.7): descriptors, the two rings, their indices, and
 * the chains with their owners. `stateOfMemory` takes what the server has read from guest memory;
 * queue_replay.js has the same from events.
 *
 * A driver may have written anything: a walk is bounded by the size of the queue, and an index
 * outside the table ends it.
 *
 * @typedef {{table: number | bigint, index: number, gpa: number | bigint, length: number,
 *   flags: number, next: number}} Descriptor  `table` is 0, or the address of an indirect table
 * @typedef {{head: number, owner: string, descriptors: Descriptor[], members: number[],
 *   availIndex: number | null, usedIndex: number | null, usedLength: number | null}} Chain
 *   `members` are the indices of its descriptors in the queue's own table, the head first
 * @typedef {{size: number, sizeIsKnown: boolean, origin: "memory" | "events",
 *   descriptors: Map<number, Descriptor>, chains: Chain[],
 *   availRing: Map<number, number>, usedRing: Map<number, {head: number, length: number}>,
 *   availIdx: number | null, nextAvail: number | null, usedIdx: number | null,
 *   usedEvent: number | null, availEvent: number | null,
 *   availFlags: number | null, usedFlags: number | null, fault: string}} QueueState
 *   `size` is 0 while the queue is not set up; an index that is not known is null
 */

export const NEXT = 1;
export const WRITE = 2;
export const INDIRECT = 4;

/**
 * The owners of a descriptor, in the order of a buffer's life. The device cannot see when the driver
 * takes a used buffer back: a chain is `used` until one of its descriptors is available again.
 */
export const OWNERS = {
  driver: "with the driver: in no ring, as far as is known",
  available: "available: the device has not taken it",
  device: "in the device: taken, and not returned",
  used: "used: returned, the driver may take it back",
};

/** @returns {QueueState} */
export function emptyState(size, origin) {
  return {
    size, sizeIsKnown: true, origin, descriptors: new Map(), chains: [], availRing: new Map(),
    usedRing: new Map(), availIdx: null, nextAvail: null, usedIdx: null, usedEvent: null,
    availEvent: null, availFlags: null, usedFlags: null, fault: "",
  };
}

/** Return a chain with the defaults of all fields that `given` has not. @returns {Chain} */
export function makeChain(head, owner, descriptors, given) {
  const own = descriptors.filter((each) => !each.table).map((each) => each.index);
  const members = own.length ? own : [head];
  return { head, owner, descriptors, members, availIndex: null, usedIndex: null, usedLength: null, ...given };
}

/** Return the distance from index `from` to index `to`; both count modulo 2^16. */
export function distance(from, to) {
  return (to - from) & 0xffff;
}

/** Return a map from each descriptor that is in a chain to that chain. @param {QueueState} state */
export function chainsByDescriptor(state) {
  const found = new Map();
  for (const chain of state.chains) for (const index of chain.members) found.set(index, chain);
  return found;
}

/** Return the names of a descriptor's flags, such as "NEXT|WRITE" (2.7.5). */
export function flagNames(flags) {
  const names = [[NEXT, "NEXT"], [WRITE, "WRITE"], [INDIRECT, "INDIRECT"]];
  const known = names.filter(([bit]) => flags & bit).map(([, name]) => name);
  const rest = flags & ~(NEXT | WRITE | INDIRECT);
  return [...known, ...(rest ? ["0x" + rest.toString(16)] : [])].join("|") || "none";
}

/**
 * Return the state of a queue as it is in guest memory. `contents` is the answer to `/api/queue`.
 * @returns {QueueState}
 */
export function stateOfMemory(contents) {
  const { size, avail, used } = contents, state = emptyState(size, "memory");
  contents.descriptors.forEach(([gpa, length, flags, next], index) =>
    state.descriptors.set(index, { table: 0, index, gpa, length, flags, next }));
  avail.ring.forEach((head, slot) => state.availRing.set(slot, head));
  used.ring.forEach(([head, length], slot) => state.usedRing.set(slot, { head, length }));
  Object.assign(state, {
    availIdx: avail.idx, nextAvail: contents.next_avail, usedIdx: used.idx,
    usedEvent: avail.used_event, availEvent: used.avail_event,
    availFlags: avail.flags, usedFlags: used.flags,
  });
  const free = new Set(state.descriptors.keys());
  const available = availableChains(state, free);
  const inDevice = chainsInDevice(state, free, contents.heads_in_flight);
  state.chains = [...usedChains(state, free), ...inDevice, ...available];
  return state;
}

/** Walk the queue's own table from `head`, at most `size` descriptors (2.7.5). */
function walk(state, head) {
  const found = [];
  for (let index = head; found.length < state.size; ) {
    const descriptor = state.descriptors.get(index);
    if (!descriptor) break;
    found.push(descriptor);
    if (!(descriptor.flags & NEXT) || descriptor.flags & INDIRECT) break;
    index = descriptor.next;
  }
  return found;
}

/** Return the chain from `head`, in a list, and take its descriptors from `free`; [] if one is taken. */
function takeChain(state, free, head, owner, given) {
  const chain = makeChain(head, owner, walk(state, head), given);
  if (chain.members.some((index) => !free.has(index))) return [];
  chain.members.forEach((index) => free.delete(index));
  return [chain];
}

/** Return the chains that the device has not taken yet. */
function availableChains(state, free) {
  const waiting = distance(state.nextAvail, state.availIdx);
  if (waiting > state.size) {
    state.fault = `the available index is ${waiting} ahead of the device, but the queue has ${state.size} entries`;
    return [];
  }
  return Array.from({ length: waiting }, (_, i) => (state.nextAvail + i) & 0xffff).flatMap((index) =>
    takeChain(state, free, state.availRing.get(index % state.size), "available", { availIndex: index }));
}

/** Return the chains in the device, oldest first; they were in the available ring before next_avail. */
function chainsInDevice(state, free, heads) {
  const left = new Set(heads), chains = [];
  for (let back = 1; back <= state.size && left.size; back++) {
    const index = (state.nextAvail - back) & 0xffff, head = state.availRing.get(index % state.size);
    if (left.delete(head)) chains.unshift(...takeChain(state, free, head, "device", { availIndex: index }));
  }
  return [...[...left].flatMap((head) => takeChain(state, free, head, "device", {})), ...chains];
}

/** Return the chains returned last, oldest first, as long as none of their descriptors is in use again. */
function usedChains(state, free) {
  const chains = [];
  for (let back = 1; back <= state.size; back++) {
    const index = (state.usedIdx - back) & 0xffff, { head, length } = state.usedRing.get(index % state.size);
    if (back > state.usedIdx && !head && !length) break; // a slot that was never written
    // A device that uses buffers in order returns one at the index at which it was available.
    const availIndex = state.availRing.get(index % state.size) === head ? index : null;
    chains.unshift(...takeChain(state, free, head, "used", { availIndex, usedIndex: index, usedLength: length }));
  }
  return chains;
}
