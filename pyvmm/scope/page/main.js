// SPDX-License-Identifier: Apache-2.0
/**
 * The shell of the page: tabs, the selected event, keys and the status bar.
 *
 * `VIEWS` lists the views. Each is a module with `create(root, scope)`, which fills `root` and
 * returns `show(path)` and `hide()`; a view works only while it is shown. A view is created when it
 * is shown first. The address says which one that is: `#queues/balloon/inflate` shows the view
 * "queues" and hands it the path ["balloon", "inflate"].
 */

import { describer } from "./describe.js";
import * as details from "./details.js";
import { element } from "./elements.js";
import * as format from "./format.js";
import * as handshake from "./handshake.js";
import * as keys from "./keys.js";
import * as memory from "./memory.js";
import * as queues from "./queues.js";
import * as registers from "./registers.js";
import { Selection } from "./selection.js";
import { Source } from "./source.js";
import * as status from "./status.js";
import * as step from "./step.js";
import { EventStore } from "./store.js";
import * as theme from "./theme.js";
import * as timeline from "./timeline.js";

/** @type {{id: string, title: string, module: {create: Function}}[]} */
const VIEWS = [
  { id: "timeline", title: "Timeline", module: timeline },
  { id: "queues", title: "Queues", module: queues },
  { id: "handshake", title: "Handshake", module: handshake },
  { id: "memory", title: "Memory", module: memory },
  { id: "registers", title: "Registers", module: registers },
];

const byId = (id) => document.getElementById(id);

/**
 * @typedef {object} Scope the state that all views share
 * @property {EventStore} store
 * @property {Source} source
 * @property {Selection} selection
 * @property {(event: import("./store.js").ScopeEvent) => import("./describe.js").Description} describe
 * @property {typeof format} format
 * @property {(id: string, ...path: string[]) => void} open shows another view
 * @property {import("./step.js").Step} [step] of a guest that runs
 */

class Tabs {
  #scope;
  #created = new Map();
  #shown = null;

  constructor(scope) {
    this.#scope = scope;
    for (const [place, { id, title }] of VIEWS.entries()) {
      const tab = element("button", {
        type: "button", id: `tab-${id}`, role: "tab", "aria-controls": `view-${id}`,
        "aria-selected": "false", tabIndex: -1,
        "aria-keyshortcuts": place + 1, title: `${title} (${place + 1})`,
      }, title);
      tab.addEventListener("click", () => this.open(id));
      byId("tabs").append(tab);
      byId("views").append(element("section", {
        id: `view-${id}`, role: "tabpanel", "aria-labelledby": `tab-${id}`, hidden: true,
      }));
    }
    byId("tabs").addEventListener("keydown", (event) => this.#moveFocus(event));
    addEventListener("hashchange", () => this.#follow());
    this.#follow();
  }

  /** Show the view `id`. */
  open(id, ...path) {
    location.hash = [id, ...path].map(encodeURIComponent).join("/");
  }

  /** Show the view at `place`. */
  openAt(place) {
    if (VIEWS[place]) this.open(VIEWS[place].id);
  }

  #follow() {
    const [id, ...path] = decodeHash(location.hash);
    const view = VIEWS.find((each) => each.id === id) ?? VIEWS[0];
    if (this.#shown && this.#shown !== view.id) this.#created.get(this.#shown).hide();
    for (const each of VIEWS) {
      const selected = each === view, tab = byId(`tab-${each.id}`);
      tab.setAttribute("aria-selected", String(selected));
      tab.tabIndex = selected ? 0 : -1;
      byId(`view-${each.id}`).hidden = !selected;
    }
    if (!this.#created.has(view.id)) {
      this.#created.set(view.id, view.module.create(byId(`view-${view.id}`), this.#scope));
    }
    this.#shown = view.id;
    this.#created.get(view.id).show(path);
  }

  #moveFocus(event) {
    const tabs = [...byId("tabs").children], at = tabs.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined || at < 0) return;
    event.preventDefault();
    const tab = tabs[(to + tabs.length) % tabs.length];
    tab.focus();
    tab.click();
  }
}

function decodeHash(hash) {
  try {
    return hash.slice(1).split("/").map(decodeURIComponent);
  } catch {
    return [""]; // a person has typed an address that is none
  }
}

async function main() {
  theme.restore();
  byId("theme").addEventListener("click", theme.toggle);
  let source;
  try {
    source = await Source.open();
  } catch (error) {
    byId("state").textContent = `The page cannot be filled: ${error.message}`;
    return;
  }
  const store = new EventStore(), selection = new Selection(store);
  const scope = { store, source, selection, describe: describer(source.info.kinds), format };
  const tabs = new Tabs(scope);
  scope.open = (id, ...path) => tabs.open(id, ...path);
  details.create(byId("details"), scope);
  status.create(scope);
  keys.create(scope, tabs);
  step.create(byId("step"), scope);
  document.documentElement.dataset.ready = "true";
  await source.start(store);
}

await main();
