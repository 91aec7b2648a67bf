# SPDX-License-Identifier: Apache-2.0
"""The messages of a migration; each is a record (`pyvmm.state.records`).

    kind        sender        payload
    migration   source        the configuration of the machine, as in a snapshot
    pages       source        u64 first page frame, a multiple of 512; 64 bytes with a bit for each
                              of the 512 pages from there on. The pages whose bits are set follow
                              the record, 4 KiB each, in order; then u64, their checksum, which is
                              the one that "migration" names. In version 1 they are in the record
    zeros       source        (u64 first page frame, u64 count) for each run of pages that are zero
    round-end   source        u64 number of the round that ends here, from 1 on
    (others)    source        state of the parts of the machine
    ready       source        u64 number of pages sent, u64 number of required parts sent, u64 1 if
                              the guest ran before the switchover, 0 if it was paused
    commit      source        empty
    stream      source        token, 32 bytes; u64 number of the stream, from 1 on
    welcome     destination   16 bytes, the checksum that it has chosen of those offered, padded
                              with zeros; then, if the source asked for several streams, the token
                              that they join with, 32 bytes. Without the first 16 bytes, and of an
                              older version, if it has chosen none
    joined      destination   empty
    round-ack   destination   u64 number of the round all of which is in memory
    restored    destination   empty
    running     destination   empty
    failed      destination   reason, UTF-8

The version of "migration" is that of the stream (`docs/reference/formats.md`). "failed" never
changes, so that either side can tell the other why it refuses its version. A source that asks for
one stream sends version 3, which older destinations read, with several version 4. With version 5 it
offers checksums, of which the destination may choose one in place of the one that "migration"
names; destinations that know only the version it would send otherwise read it, and choose none.

"stream" is the first message of a connection that joins a migration; "pages" and "round-end" are
all that may follow it there.

Every payload has a checksum in its record. Checks that need no earlier message are made here: a
payload that is not exactly as above is a `MigrationError`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from devices.state import MAX_PAYLOAD_BYTES, Payload, StateError
from pyvmm.config import MachineConfig
from pyvmm.migration.errors import MigrationError
from pyvmm.state.config_record import encode_config, restore_config
from pyvmm.state.records import HEADER_BYTES, Kind, Record, fields_upgrade, record_fields
from pyvmm_native import PAGE_BYTES
from pyvmm_native.page_blocks import BLOCK_PAGES
from pyvmm_native.runs import PageRuns

BITMAP_BYTES = BLOCK_PAGES // 8
HELLO = "migration"
_CHECKSUM = "checksum"
_STREAMS = "streams"
_OFFERED = "offered"
STREAM_VERSION = 5
_STREAMS_VERSION, _ONE_STREAM_VERSION = 4, 3
MAX_STREAMS = 16
TOKEN_BYTES = 32
MAX_ZERO_RUNS = 4096
MAX_REASON_BYTES = 1024

_PAGES = struct.Struct(f"<Q{BITMAP_BYTES}s")
PAGES_MESSAGE_BYTES = HEADER_BYTES + _PAGES.size
"""Length of a `Pages` whose contents follow it."""
_RUN = struct.Struct("<QQ")
_NUMBER = struct.Struct("<Q")
_TOTALS = struct.Struct("<QQQ")
_STREAM = struct.Struct(f"<{TOKEN_BYTES}sQ")
_CHECKSUM_NAME = struct.Struct("<16s")


@dataclass(frozen=True)
class Hello:
    """The first message: the configuration of the guest's machine, and how its pages are sent."""

    config: MachineConfig
    checksum: str = "crc32c"
    streams: int = 1
    """With several, pages travel on further connections and not on that of this message."""
    offered: tuple[str, ...] = ()
    """Checksums that the destination may choose instead, the best first."""

    def record(self) -> Record:
        further: dict[str, Any] = {_CHECKSUM: self.checksum}
        needed = _ONE_STREAM_VERSION if self.streams == 1 else _STREAMS_VERSION
        if self.offered or needed > _ONE_STREAM_VERSION:
            further[_STREAMS] = self.streams
        if not self.offered:
            return Record(HELLO, needed, encode_config(self.config, further))
        further[_OFFERED] = " ".join(self.offered)
        payload = encode_config(self.config, further)
        return Record(HELLO, STREAM_VERSION, payload, compatible=STREAM_VERSION - needed)

    @classmethod
    def read(cls, record: Record) -> Hello:
        try:
            fields = record_fields(record, SOURCE_KINDS[HELLO])
            checksum, streams = fields.text(_CHECKSUM), fields.number(_STREAMS)
            offered = tuple(fields.text(_OFFERED).split())
            hello = cls(restore_config(fields), checksum, streams, offered)
        except StateError as error:
            raise MigrationError(str(error)) from error
        if not 1 <= streams <= MAX_STREAMS:
            raise MigrationError(f"a migration has 1 to {MAX_STREAMS} streams, not {streams}")
        return hello


@dataclass(frozen=True)
class StreamHello:
    """The first message of a connection that joins a migration as its stream `number`."""

    token: bytes = field(repr=False)
    number: int

    def record(self) -> Record:
        return _record("stream", _STREAM.pack(self.token, self.number))

    @classmethod
    def read(cls, record: Record) -> StreamHello:
        if len(record.payload) != _STREAM.size:
            raise _wrong_size(record)
        return cls(*_STREAM.unpack(record.payload))


@dataclass(frozen=True)
class Pages:
    """Those of 512 pages whose bits are set, `count` in number.

    They follow with their checksum, unless the message has their contents itself, as `data`.
    """

    first_pfn: int
    bitmap: bytes
    data: bytes | memoryview = b""

    @classmethod
    def heads(cls, start_pfn: int, bitmap: bytes) -> bytes:
        """Return the encoded messages of all pages whose bits are set, from `start_pfn` on.

        There is one for each block that has any, without contents.
        """
        blocks = (
            (at, bitmap[at : at + BITMAP_BYTES]) for at in range(0, len(bitmap), BITMAP_BYTES)
        )
        return b"".join(
            [cls(start_pfn + 8 * at, bits).record().encode() for at, bits in blocks if any(bits)]
        )

    def record(self) -> Record:
        head = _PAGES.pack(self.first_pfn, self.bitmap)
        return _record("pages", b"".join((head, self.data)))

    @classmethod
    def read(cls, record: Record) -> Pages:
        payload = record.payload
        if len(payload) < _PAGES.size:
            raise _wrong_size(record)
        first_pfn, bitmap = _PAGES.unpack_from(payload)
        pages = cls(first_pfn, bitmap, memoryview(payload)[_PAGES.size :])
        if first_pfn % BLOCK_PAGES or first_pfn >> 40:
            raise MigrationError(f"no block of pages begins at page frame {first_pfn:#x}")
        if not pages.count:
            raise MigrationError("message 'pages' names no page")
        if pages.data and len(pages.data) != pages.count * PAGE_BYTES:
            raise MigrationError(
                f"message 'pages' has {len(payload)} bytes for {pages.count} pages"
            )
        return pages

    @property
    def count(self) -> int:
        """Number of pages."""
        return int.from_bytes(self.bitmap, "little").bit_count()

    @property
    def runs(self) -> PageRuns:
        """The pages."""
        return PageRuns.from_bitmap(self.bitmap, self.first_pfn)


@dataclass(frozen=True)
class Zeros:
    """Pages that hold nothing but zeros, at most `MAX_ZERO_RUNS` runs of them."""

    runs: PageRuns

    @classmethod
    def split(cls, runs: PageRuns) -> Iterator[Zeros]:
        """Yield messages for any number of runs."""
        listed = list(runs)
        for first in range(0, len(listed), MAX_ZERO_RUNS):
            yield cls(PageRuns(listed[first : first + MAX_ZERO_RUNS]))

    def record(self) -> Record:
        return _record("zeros", b"".join(_RUN.pack(*run) for run in self.runs))

    @classmethod
    def read(cls, record: Record) -> Zeros:
        if not record.payload or len(record.payload) % _RUN.size:
            raise _wrong_size(record)
        try:
            return cls(PageRuns(_RUN.iter_unpack(record.payload)))
        except ValueError as error:
            raise MigrationError(f"message 'zeros': {error}") from error


@dataclass(frozen=True)
class RoundEnd:
    """All of round `number` has been sent."""

    number: int

    def record(self) -> Record:
        return _record("round-end", _NUMBER.pack(self.number))

    @classmethod
    def read(cls, record: Record) -> RoundEnd:
        return cls(*_unpacked(_NUMBER, record))


class DeviceState(NamedTuple):
    """State of one part of the machine, whose payload has not been checked."""

    part: Record

    def record(self) -> Record:
        return self.part


@dataclass(frozen=True)
class Ready:
    """The source has sent everything: `pages`, repeated ones included, and `parts`, if required."""

    pages: int
    parts: int
    was_running: bool
    """The guest ran before the switchover, so it is to run at the destination."""

    def record(self) -> Record:
        return _record("ready", _TOTALS.pack(self.pages, self.parts, self.was_running))

    @classmethod
    def read(cls, record: Record) -> Ready:
        pages, parts, was_running = _unpacked(_TOTALS, record)
        if was_running > 1:
            raise MigrationError(f"message 'ready' has {was_running} instead of 0 or 1")
        return cls(pages, parts, bool(was_running))


@dataclass(frozen=True)
class Commit:
    """The guest is the destination's; the source never runs it again."""

    def record(self) -> Record:
        return _record("commit")

    @classmethod
    def read(cls, record: Record) -> Commit:
        return cls(*_unpacked(_EMPTY, record))


@dataclass(frozen=True)
class Welcome:
    """The destination has created the machine, and has memory for it."""

    token: bytes = field(default=b"", repr=False)
    """Streams join with it; empty if the source asked for one stream."""
    checksum: str = ""
    """The one that was chosen of those offered, if any."""

    def record(self) -> Record:
        if not self.checksum:
            return Record("welcome", 2 if self.token else 1, self.token)
        return _record("welcome", _CHECKSUM_NAME.pack(self.checksum.encode()) + self.token)

    @classmethod
    def read(cls, record: Record) -> Welcome:
        payload = record.payload
        if len(payload) - _CHECKSUM_NAME.size not in (0, TOKEN_BYTES):
            raise _wrong_size(record)
        (name,) = _CHECKSUM_NAME.unpack_from(payload)
        checksum = name.rstrip(b"\0").decode("ascii", "backslashreplace")
        return cls(payload[_CHECKSUM_NAME.size :], checksum)


@dataclass(frozen=True)
class StreamsJoined:
    """All streams that the source asked for have joined."""

    def record(self) -> Record:
        return _record("joined")

    @classmethod
    def read(cls, record: Record) -> StreamsJoined:
        return cls(*_unpacked(_EMPTY, record))


@dataclass(frozen=True)
class RoundAck:
    """All of round `number` is in the destination's memory."""

    number: int

    def record(self) -> Record:
        return _record("round-ack", _NUMBER.pack(self.number))

    @classmethod
    def read(cls, record: Record) -> RoundAck:
        return cls(*_unpacked(_NUMBER, record))


@dataclass(frozen=True)
class StateRestored:
    """The destination has restored all state; the guest could run there, but does not yet."""

    def record(self) -> Record:
        return _record("restored")

    @classmethod
    def read(cls, record: Record) -> StateRestored:
        return cls(*_unpacked(_EMPTY, record))


@dataclass(frozen=True)
class Running:
    """The guest runs at the destination."""

    def record(self) -> Record:
        return _record("running")

    @classmethod
    def read(cls, record: Record) -> Running:
        return cls(*_unpacked(_EMPTY, record))


@dataclass(frozen=True)
class Failed:
    """The destination has aborted: the guest does not run there and never will."""

    reason: str

    def record(self) -> Record:
        return _record("failed", _reason_bytes(self.reason))

    @classmethod
    def read(cls, record: Record) -> Failed:
        return cls(_reason_text(record.payload))


def _same(payload: bytes) -> bytes:
    return payload


def _with_checksum(payload: dict[str, Any]) -> Payload:
    return {**payload, _CHECKSUM: "crc32c"}


def _with_streams(payload: dict[str, Any]) -> Payload:
    return {**payload, _STREAMS: 1}


def _with_offered(payload: dict[str, Any]) -> Payload:
    return {**payload, _OFFERED: ""}


def _with_chosen(payload: bytes) -> bytes:
    return _CHECKSUM_NAME.pack(b"") + payload


FromSource: TypeAlias = (
    Hello | StreamHello | Pages | Zeros | RoundEnd | DeviceState | Ready | Commit
)
FromDestination: TypeAlias = Welcome | StreamsJoined | RoundAck | StateRestored | Running | Failed

SOURCE_KINDS = {
    HELLO: Kind(
        STREAM_VERSION,
        MAX_PAYLOAD_BYTES,
        upgrades=tuple(map(fields_upgrade, (_with_checksum, _with_streams, _with_offered))),
    ),
    "stream": Kind(1, _STREAM.size),
    "pages": Kind(2, _PAGES.size + BLOCK_PAGES * PAGE_BYTES, upgrades=(_same,)),
    "zeros": Kind(1, MAX_ZERO_RUNS * _RUN.size),
    "round-end": Kind(1, _NUMBER.size),
    "ready": Kind(1, _TOTALS.size),
    "commit": Kind(1, 0),
}
DESTINATION_KINDS = {
    "welcome": Kind(3, _CHECKSUM_NAME.size + TOKEN_BYTES, upgrades=(_same, _with_chosen)),
    "joined": Kind(1, 0),
    "round-ack": Kind(1, _NUMBER.size),
    "restored": Kind(1, 0),
    "running": Kind(1, 0),
    "failed": Kind(1, MAX_REASON_BYTES),
}

_EMPTY = struct.Struct("")


def _record(kind: str, payload: bytes = b"") -> Record:
    known = SOURCE_KINDS.get(kind) or DESTINATION_KINDS[kind]
    return Record(kind, known.version, payload)


def _unpacked(layout: struct.Struct, record: Record) -> tuple[int, ...]:
    if len(record.payload) != layout.size:
        raise _wrong_size(record)
    return layout.unpack(record.payload)


def _wrong_size(record: Record) -> MigrationError:
    return MigrationError(f"message {record.kind!r} has {len(record.payload)} bytes")


def _reason_bytes(reason: str) -> bytes:
    return reason.encode("utf-8", "backslashreplace")[:MAX_REASON_BYTES]


def _reason_text(payload: bytes) -> str:
    """Return the reason, fit to be shown on a terminal."""
    text = payload.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else "?" for char in text)
