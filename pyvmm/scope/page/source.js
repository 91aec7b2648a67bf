// SPDX-License-Identifier: Apache-2.0
/**
 * Where the events come from: a live guest (WebSocket), a recording that the server reads, or the
 * data in an exported page. All deliver chunks, which `start` adds to the store.
 *
 * While the page is open it says "alive" every two seconds to the server of a live guest, which
 * otherwise lets a guest that Step has stopped run again.
 */

import { chunkSize, decodeBase64, decodeChunk, DecodeError } from "./decode.js";

const ALIVE_MS = 2000;

/**
 * @typedef {object} SourceInfo
 * @property {boolean} live
 * @property {string} name
 * @property {number | null} memory bytes of RAM
 * @property {[number, number][]} ram address and bytes of each range
 * @property {{name: string, queues: string[]}[]} devices
 * @property {{name: string, meaning: string, fields: Record<string, string>}[]} kinds
 * @property {string[]} notes
 */

export class Source {
  /** @type {SourceInfo} */
  info;
  /** "loading", "live", "complete" (all of a recording is there) or "ended" (the guest is gone). */
  state = "loading";
  #changed = new Set();
  #messages = new Set();
  #socket = null;
  #embedded = document.getElementById("embedded-source");

  /** Learn what there is to see; the events come after `start`. */
  static async open() {
    const source = new Source();
    source.info = source.#embedded ? parseJson(source.#embedded.textContent) : await source.get("source");
    return source;
  }

  /** Call `told(state, note)` when the state changes, or there is something to say. */
  subscribe(told) {
    this.#changed.add(told);
  }

  /** Call `told` with each message of a live guest that is not a chunk. */
  onMessage(told) {
    this.#messages.add(told);
  }

  /** Return the JSON answer of the server to `api/PATH`. Throws Error with the server's words. */
  async get(path, parameters = {}) {
    if (this.#embedded) throw new Error("An exported page holds events only");
    const answer = await fetch(`api/${path}?${new URLSearchParams(parameters)}`);
    const body = parseJson(await answer.text());
    if (!answer.ok) throw new Error(body.error ?? `The server answers ${answer.status}`);
    return body;
  }

  /** Send a message, such as {type: "resume"}, to the server of a live guest. */
  send(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  /** Add the events to `store`; return when all of a recording is there, or at once for a guest. */
  async start(store) {
    try {
      if (this.#embedded) await this.#addEmbedded(store);
      else if (this.info.live) return this.#connect(store);
      else await this.#addRecording(store);
      this.#tell("complete");
    } catch (error) {
      this.#tell("complete", error.message);
    }
  }

  async #addRecording(store) {
    const answer = await fetch("api/chunks");
    if (!answer.ok) throw new Error((await answer.json()).error);
    await addChunks(store, answer.body.getReader());
  }

  /** Add the chunks of an exported page, each in base64 in its element, whose memory is then freed. */
  async #addEmbedded(store) {
    // No list of all elements: it would keep those that are removed.
    for (let part; (part = document.querySelector(".embedded-chunk")); part.remove()) {
      store.add(await decodeChunk(decodeBase64(part.textContent)));
    }
  }

  #connect(store) {
    const socket = new WebSocket(new URL("api/live", location.href.replace(/^http/, "ws")));
    let adding = Promise.resolve();
    const fail = (error) => this.#tell(this.state, error.message);
    this.#socket = socket;
    socket.binaryType = "arraybuffer";
    socket.addEventListener("open", () => this.#tell("live"));
    socket.addEventListener("message", ({ data }) => {
      if (typeof data === "string") return this.#take(parseJson(data));
      // In order, although each is inflated asynchronously.
      adding = adding.then(async () => store.add(await decodeChunk(new Uint8Array(data)))).catch(fail);
    });
    socket.addEventListener("close", ({ reason }) => {
      clearInterval(timer);
      this.#tell("ended", reason || undefined);
    });
    const timer = setInterval(() => this.send({ type: "alive" }), ALIVE_MS);
  }

  #take(message) {
    for (const told of this.#messages) told(message);
  }

  #tell(state, note) {
    this.state = state;
    for (const told of this.#changed) told(state, note);
  }
}

/** Return the value of a JSON text in which an integer beyond 2^53 - 1, such as an address, is a BigInt. */
function parseJson(text) {
  return JSON.parse(text, (_key, value, context) => {
    const isExact = typeof value !== "number" || Number.isSafeInteger(value) || !/^\d+$/.test(context?.source);
    return isExact ? value : BigInt(context.source);
  });
}

/** Add all chunks that `reader` delivers, in parts of any size. Throws DecodeError. */
export async function addChunks(store, reader) {
  let bytes = new Uint8Array(0);
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const all = new Uint8Array(bytes.length + part.value.length);
    all.set(bytes);
    all.set(part.value, bytes.length);
    bytes = all;
    for (let size = chunkSize(bytes); size && bytes.length >= size; size = chunkSize(bytes)) {
      store.add(await decodeChunk(bytes));
      bytes = bytes.subarray(size);
    }
  }
  if (bytes.length) throw new DecodeError("The last chunk is incomplete");
}
