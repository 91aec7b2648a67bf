// SPDX-License-Identifier: Apache-2.0
/** The timeline: the lanes of the machine over time, and the list of events below them. */

import * as eventList from "./event_list.js";

/** @param {HTMLElement} root @param {import("./main.js").Scope} scope */
export function create(root, scope) {
  const list = eventList.create(root, scope);
  return { show: () => list.show(), hide: () => list.hide() };
}
