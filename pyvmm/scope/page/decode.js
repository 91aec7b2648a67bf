// SPDX-License-Identifier: Apache-2.0
/**
 * Decode chunks of the recording format (pyvmm/trace/recording_format.py): header, CRC-32, deflated
 * tables and payload. A chunk is a row of LEB128 numbers; `Reader` reads them. A value is a Number
 * as long as that is exact, up to 2^53 - 1, and a BigInt beyond.
 *
 * The bytes may come from a damaged file or a hostile guest: lengths are checked against what is
 * there and against the limits of the format before memory is taken, and the checksum before
 * contents are used. All faults are a `DecodeError`.
 */

export class DecodeError extends Error {}

/**
 * @typedef {{name: string, isText: boolean}} Field
 * @typedef {{name: string, fields: Field[]}} Shape
 * @typedef {object} Chunk
 * @property {number} firstSeq sequence number of the first event
 * @property {bigint} baseNs CLOCK_MONOTONIC from which the times of its events count
 * @property {number} count number of events
 * @property {number} dropped events that were lost after them
 * @property {Map<number, Shape>} shapes the kinds by number
 * @property {Map<number, string>} strings the strings by number
 * @property {Uint8Array} payload the events
 */

const HEADER_BYTES = 48, ALIGNMENT = 64, MAX_RAW_BYTES = 8 << 20, MAGIC = 0x4b4e4843; // "CHNK"

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? (byte >>> 1) ^ 0xedb88320 : byte >>> 1;
  return byte;
});

/** Return the CRC-32 of `bytes`, as zlib computes it. */
function crc32(bytes) {
  let crc = ~0;
  for (let i = 0; i < bytes.length; i++) crc = (crc >>> 8) ^ CRC_TABLE[(crc ^ bytes[i]) & 0xff];
  return ~crc >>> 0;
}

/** Read LEB128 numbers and strings one after the other. */
export class Reader {
  /** @param {Uint8Array} bytes @param {number} at */
  constructor(bytes, at = 0) {
    this.bytes = bytes;
    this.at = at;
  }

  /** Return the next number of at most 64 bits. @returns {number | bigint} */
  number() {
    const { bytes } = this, start = this.at;
    let value = 0, scale = 1, byte = 0;
    for (let i = start; i < start + 7; i++) {
      if (i >= bytes.length) throw new DecodeError("an event is cut short");
      byte = bytes[i];
      value += (byte & 0x7f) * scale;
      if (byte < 0x80) {
        this.at = i + 1;
        return value;
      }
      scale *= 128;
    }
    return this.#large(value);
  }

  /** Return the next number, of which the first seven bytes are `low`. */
  #large(low) {
    let value = BigInt(low);
    for (let i = this.at + 7, shift = 49n; ; i++, shift += 7n) {
      if (i >= this.bytes.length) throw new DecodeError("an event is cut short");
      const byte = this.bytes[i];
      if (shift === 63n && byte > 1) throw new DecodeError("a number has more than 64 bits");
      value |= BigInt(byte & 0x7f) << shift;
      if (byte < 0x80) {
        this.at = i + 1;
        return value <= Number.MAX_SAFE_INTEGER ? Number(value) : value;
      }
    }
  }

  /** Return the next string; `strings` has those of the table. @param {Map<number, string>} strings */
  text(strings) {
    const number = this.number();
    if (number) {
      const text = strings.get(Number(number));
      if (text === undefined) throw new DecodeError(`string ${number} is not in the table`);
      return text;
    }
    const length = Number(this.number()), start = this.at;
    if (length > this.bytes.length - start) throw new DecodeError("a string is cut short");
    this.at = start + length;
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(this.bytes.subarray(start, this.at));
  }
}

/** Return the bytes of a base64 text. */
export function decodeBase64(text) {
  const binary = atob(text), bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/**
 * Return the size in bytes of the chunk at the start of `bytes`, padding included, or 0 if more
 * bytes are needed to tell.
 */
export function chunkSize(bytes) {
  if (bytes.length < HEADER_BYTES) return 0;
  const view = new DataView(bytes.buffer, bytes.byteOffset, HEADER_BYTES);
  if (view.getUint32(0, true) !== MAGIC) throw new DecodeError("no chunk begins here");
  const bodyBytes = view.getUint32(8, true);
  if (Math.max(bodyBytes, view.getUint32(12, true)) > MAX_RAW_BYTES) {
    throw new DecodeError("a chunk is too large");
  }
  return Math.ceil((HEADER_BYTES + bodyBytes) / ALIGNMENT) * ALIGNMENT;
}

/** Return the chunk that `bytes` begin with. @param {Uint8Array} bytes @returns {Promise<Chunk>} */
export async function decodeChunk(bytes) {
  const size = chunkSize(bytes);
  if (!size) throw new DecodeError("a chunk is cut short");
  const view = new DataView(bytes.buffer, bytes.byteOffset, HEADER_BYTES);
  const end = HEADER_BYTES + view.getUint32(8, true), rawBytes = view.getUint32(12, true);
  if (bytes.length < end) throw new DecodeError("a chunk is cut short");
  if (crc32(bytes.subarray(8, end)) !== view.getUint32(4, true)) {
    throw new DecodeError("a chunk is damaged: its checksum differs");
  }
  const raw = await inflate(bytes.subarray(HEADER_BYTES, end), rawBytes);
  const firstSeq = view.getBigUint64(16, true), dropped = view.getBigUint64(32, true);
  const count = view.getUint32(40, true), tablesBytes = view.getUint32(44, true);
  const payload = raw.subarray(tablesBytes);
  // An event takes two bytes at least.
  if (count * 2 > payload.length || firstSeq + dropped > 2n ** 52n) {
    throw new DecodeError("a chunk contradicts itself");
  }
  return {
    firstSeq: Number(firstSeq),
    baseNs: view.getBigUint64(24, true),
    count,
    dropped: Number(dropped),
    ...decodeTables(raw.subarray(0, tablesBytes)),
    payload,
  };
}

/** Return the kinds and strings of a chunk. */
function decodeTables(bytes) {
  try {
    const [kinds, texts] = JSON.parse(new TextDecoder().decode(bytes));
    const shapes = new Map(), strings = new Map();
    for (const [number, name, fields] of kinds) {
      shapes.set(Number(number), { name: String(name), fields: fields.map(decodeField) });
    }
    for (const [number, text] of texts) strings.set(Number(number), String(text));
    return { shapes, strings };
  } catch (error) {
    throw new DecodeError(`a chunk is malformed: ${error.message}`);
  }
}

function decodeField([name, type]) {
  if (type !== "u" && type !== "s") throw new DecodeError("a field of an unknown type");
  return { name: String(name), isText: type === "s" };
}

/** Return the `size` bytes that `bytes`, a zlib stream, inflate to. */
async function inflate(bytes, size) {
  const raw = new Uint8Array(size);
  let at = 0;
  try {
    const reader = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      if (at + part.value.length > size) throw new DecodeError("it is longer than it says");
      raw.set(part.value, at);
      at += part.value.length;
    }
  } catch (error) {
    throw new DecodeError(`a chunk is malformed: ${error.message}`);
  }
  if (at !== size) throw new DecodeError("a chunk is malformed: it is shorter than it says");
  return raw;
}
