// SPDX-License-Identifier: Apache-2.0
/**
 * The state of a virtqueue from its events: `QueueReplay` follows them one by one, `QueueHistory`
 * gives the state after any event of a store.
 *
 * Events tell what the device does. It does not see the driver's writes, so the available index is
 * not known from them, nor the contents of descriptors that were not walked. A recording may begin
 * after the queue was set up, so that its size is not known either: then it is the smallest power of
 * two that holds all indices seen.
 */

import { EventHistory } from "./event_history.js";
import { emptyState, makeChain } from "./queue_state.js";

/** Follows the events of one queue. */
class QueueReplay {
  constructor() {
    this.restart(0);
  }

  /** Begin with a queue of `size` entries of which nothing is known. */
  restart(size) {
    this.facts = emptyState(size, "events");
    /** @type {Map<number, import("./queue_state.js").Chain>} chains by their head, oldest first */
    this.chains = new Map();
    this.headOf = new Map(); // the head of the chain that a descriptor belongs to
    this.walked = { head: -1, descriptors: [] };
  }

  /** The state after all events so far. @returns {import("./queue_state.js").QueueState} */
  get state() {
    return { ...this.facts, chains: [...this.chains.values()] };
  }

  /** Return a replay at the same event that goes on by itself. */
  clone() {
    const copy = new QueueReplay(), { facts, walked } = this;
    copy.facts = {
      ...facts, descriptors: new Map(facts.descriptors), availRing: new Map(facts.availRing),
      usedRing: new Map(facts.usedRing),
    };
    copy.chains = new Map(this.chains);
    copy.headOf = new Map(this.headOf);
    copy.walked = { head: walked.head, descriptors: [...walked.descriptors] };
    return copy;
  }

  /** Follow one event of the queue, or of its device. */
  apply({ kind, fields }) {
    FOLLOW.get(kind)?.(this, withNumbers(fields));
  }

  /** Make room for descriptor `index` if the size of the queue was not recorded. */
  assumeSize(index) {
    const { facts } = this;
    if (index < facts.size || (facts.size && facts.sizeIsKnown)) return;
    facts.size = 2 ** Math.ceil(Math.log2(Math.max(index + 1, 2)));
    facts.sizeIsKnown = false;
    facts.availRing.clear();
    facts.usedRing.clear();
  }

  /** Take a buffer from the driver: chains with a descriptor that it uses again are forgotten. */
  take(chain) {
    for (const index of chain.members) {
      const before = this.chains.get(this.headOf.get(index));
      if (before) this.forget(before);
    }
    for (const index of chain.members) this.headOf.set(index, chain.head);
    this.chains.set(chain.head, chain);
  }

  forget(chain) {
    this.chains.delete(chain.head);
    for (const index of chain.members) this.headOf.delete(index);
  }
}

const FOLLOW = new Map(Object.entries({
  queue_live(replay, { size }) {
    replay.restart(size);
    Object.assign(replay.facts, { nextAvail: 0, usedIdx: 0 });
  },
  queue_reset: (replay) => replay.restart(0),
  status(replay, { status }) {
    if (!status) replay.restart(0);
  },
  needs_reset(replay, { why }) {
    replay.facts.fault = String(why);
  },
  descriptor(replay, { head, table_gpa: table, index, gpa, length, flags, next }) {
    if (replay.walked.head !== head) replay.walked = { head, descriptors: [] };
    const descriptor = { table, index, gpa, length, flags, next };
    replay.walked.descriptors.push(descriptor);
    if (table) return;
    replay.assumeSize(index);
    replay.facts.descriptors.set(index, descriptor);
  },
  chain(replay, { head, avail_index: availIndex }) {
    const { facts, walked } = replay;
    replay.assumeSize(head);
    replay.take(makeChain(head, "device", walked.head === head ? walked.descriptors : [], { availIndex }));
    replay.walked = { head: -1, descriptors: [] };
    facts.nextAvail = (availIndex + 1) & 0xffff;
    facts.availRing.set(availIndex % facts.size, head);
  },
  used(replay, { head, used_index: usedIndex, length }) {
    const { facts, chains } = replay, chain = chains.get(head);
    replay.assumeSize(head);
    if (chain?.owner === "device") chains.set(head, { ...chain, owner: "used", usedIndex, usedLength: length });
    facts.usedIdx = (usedIndex + 1) & 0xffff;
    facts.usedRing.set(usedIndex % facts.size, { head, length });
  },
  avail_notifications({ facts }, fields) {
    if (fields.why === "event index") facts.availEvent = fields.avail_event;
    else facts.usedFlags = fields.enabled ? 0 : 1;
  },
  used_notification({ facts }, fields) {
    if (fields.why === "event index") facts.usedEvent = fields.used_event;
    else facts.availFlags = fields.sent ? 0 : 1;
  },
}));

/** Return `fields` without BigInt, except for addresses: a damaged recording can have any number. */
function withNumbers(fields) {
  const found = { ...fields };
  for (const [name, value] of Object.entries(fields)) {
    if (typeof value === "bigint" && !name.endsWith("gpa")) found[name] = Number(value);
  }
  return found;
}

/** The states of one queue over the events of a store. */
export class QueueHistory {
  #history;

  /** @param {import("./store.js").EventStore} store */
  constructor(store, device, queue) {
    const concerns = (type) => FOLLOW.has(type.kind) && type.device === device
      && (type.queue === queue || type.kind === "status");
    this.#history = new EventHistory(store, { make: () => new QueueReplay(), concerns });
  }

  /** Return the state after the event at `index`. @returns {import("./queue_state.js").QueueState} */
  stateAt(index) {
    return this.#history.at(index).state;
  }
}
