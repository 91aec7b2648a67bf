# SPDX-License-Identifier: Apache-2.0
"""The layout of a recording: the events of one machine in a file.

    0       magic, version, limit, CRC-32 and length of the description; the description, JSON
    4096    chunks, each at a multiple of 64 bytes

A chunk has one `Batch` of events: a header with its CRC-32, and the tables (JSON) and the payload
of the batch, deflated together. It needs no other chunk to be read. Chunks are written in order.

Without a limit they follow each other to the end of the file. With a limit they are a ring of that
many bytes: a chunk that does not fit before the end goes to the beginning, after an end marker was
left in its place, and overwrites the oldest ones. Sequence numbers tell the order: the newest chunk
is the one before the first place at which there is no whole chunk, or, right after a lap, before
the end marker; older chunks follow the newest one at the first multiple of 64 at which one begins.

Nothing is read that the file only claims: lengths are checked against the file and the limits here
before memory is taken, and CRCs before contents are used.
"""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any, BinaryIO, NamedTuple

from pyvmm_native.events import Batch

MAGIC = b"pyvmm recording\n"
VERSION = 1
"""Of the format; a reader accepts no other."""
HEADER_BYTES = 512
"""Most that the description and what is before it take: a sector, which a disk writes as one."""
DATA_OFFSET = 4096
ALIGNMENT = 64
MIN_LIMIT_BYTES = 4 << 20
"""A ring holds at least a few chunks of the largest size."""
MAX_RAW_BYTES = 8 << 20
"""A batch is at most half of the buffer, 1 MiB, and its tables are of bounded size, too."""

_HEADER = struct.Struct(f"<{len(MAGIC)}sIQII")
_CHUNK = struct.Struct("<4sIIIQQQII")
CHUNK_MAGIC, END_MAGIC = b"CHNK", b"LAP."
CHUNK_HEADER_BYTES = _CHUNK.size
_DEFLATE_LEVEL = 1


class FormatError(ValueError):
    """Bytes that are no recording of this version; the message says what is wrong."""


class FileHeader(NamedTuple):
    """The first part of a recording."""

    limit_bytes: int
    """Size of the ring of chunks; 0 if there is no limit."""
    description: dict[str, Any]
    """`pyvmm`: version of the writer; `realtime-ns` and `monotonic-ns`: the two clocks at the
    start; `ram-bytes`: size of the guest's RAM, once there is a machine."""

    def encode(self) -> bytes:
        """Return the bytes up to the first chunk."""
        text = json.dumps(self.description).encode()
        crc = zlib.crc32(struct.pack("<QI", self.limit_bytes, len(text)) + text)
        data = _HEADER.pack(MAGIC, VERSION, self.limit_bytes, crc, len(text)) + text
        if len(data) > HEADER_BYTES:
            raise ValueError(f"a description of {len(text)} bytes")
        return data.ljust(DATA_OFFSET, b"\0")

    @classmethod
    def decode(cls, data: bytes) -> FileHeader:
        """Return the header in `data`, the first `DATA_OFFSET` bytes of a file. FormatError."""
        if len(data) < _HEADER.size or not data.startswith(MAGIC):
            raise FormatError("it is no recording")
        _, version, limit_bytes, crc, length = _HEADER.unpack_from(data)
        if version != VERSION:
            raise FormatError(f"its format has version {version}, this pyvmm reads {VERSION}")
        text = data[_HEADER.size : _HEADER.size + length]
        if len(text) != length or len(data) < DATA_OFFSET:
            raise FormatError("its first part is incomplete")
        if zlib.crc32(struct.pack("<QI", limit_bytes, length) + text) != crc:
            raise FormatError("its first part is damaged: its checksum differs")
        description = json.loads(text)
        if not isinstance(description, dict):
            raise FormatError("its description is no object")
        return cls(limit_bytes, description)


def begins_recording(file: BinaryIO) -> bool:
    """Return True if `file` is a recording, of any version, or at least begins like one."""
    return file.read(len(MAGIC)) == MAGIC


class ChunkHeader(NamedTuple):
    """The header of a chunk."""

    crc: int
    body_bytes: int
    raw_bytes: int
    first_seq: int
    base_ns: int
    dropped: int
    event_count: int
    tables_bytes: int

    @property
    def end_seq(self) -> int:
        """The sequence number after the last event of the chunk, lost ones included."""
        return self.first_seq + self.event_count + self.dropped

    @property
    def size_bytes(self) -> int:
        """The bytes that the chunk takes in the file."""
        return aligned(CHUNK_HEADER_BYTES + self.body_bytes)


def aligned(size_bytes: int) -> int:
    """Return `size_bytes`, rounded up to the alignment of chunks."""
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT


def encode_chunk(batch: Batch) -> bytes:
    """Return the chunk of `batch`, padded to the alignment."""
    tables = json.dumps([batch.kinds, batch.strings]).encode()
    raw = tables + batch.payload
    body = zlib.compress(raw, _DEFLATE_LEVEL)
    numbers = (batch.first_seq, batch.base_ns, batch.dropped, batch.event_count, len(tables))
    rest = _CHUNK.pack(CHUNK_MAGIC, 0, len(body), len(raw), *numbers)[8:] + body
    chunk = CHUNK_MAGIC + struct.pack("<I", zlib.crc32(rest)) + rest
    return chunk.ljust(aligned(len(chunk)), b"\0")


def decode_chunk_header(data: bytes) -> ChunkHeader | None:
    """Return the header at the start of `data`; None if no chunk begins there.

    Deflated events never take more than `MAX_RAW_BYTES` either.
    """
    if len(data) < CHUNK_HEADER_BYTES or not data.startswith(CHUNK_MAGIC):
        return None
    header = ChunkHeader(*_CHUNK.unpack_from(data)[1:])
    return header if max(header.raw_bytes, header.body_bytes) <= MAX_RAW_BYTES else None


def chunk_is_intact(header: ChunkHeader, data: bytes) -> bool:
    """Return whether `data`, header and body of a chunk, has the checksum of `header`."""
    end = CHUNK_HEADER_BYTES + header.body_bytes
    return len(data) >= end and zlib.crc32(data[8:end]) == header.crc


def decode_chunk(header: ChunkHeader, data: bytes) -> Batch:
    """Return the batch of an intact chunk. FormatError if it contradicts itself."""
    if not header.raw_bytes:  # zlib takes 0 for no limit
        raise FormatError("a chunk is malformed: it is empty")
    try:
        inflated = zlib.decompressobj()
        raw = inflated.decompress(data[CHUNK_HEADER_BYTES:], header.raw_bytes)
        tables, payload = raw[: header.tables_bytes], raw[header.tables_bytes :]
        kinds, strings = json.loads(tables)
        batch = Batch(
            header.first_seq,
            header.base_ns,
            header.event_count,
            header.dropped,
            [(int(n), str(name), _fields(fields)) for n, name, fields in kinds],
            [(int(n), str(text)) for n, text in strings],
            payload,
        )
    except (zlib.error, ValueError, TypeError, RecursionError, OverflowError) as error:
        raise FormatError(f"a chunk is malformed: {error}") from error
    return batch


def _fields(fields: list[list[str]]) -> tuple[tuple[str, str], ...]:
    found = tuple((str(name), str(kind)) for name, kind in fields)
    if any(kind not in ("u", "s") for _, kind in found):
        raise ValueError("a field of an unknown type")
    return found
