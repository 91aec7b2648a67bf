# SPDX-License-Identifier: Apache-2.0
"""The messages of a migration; each is a record (`pyvmm.state.records`).

    kind        sender        payload
    migration   source        the configuration of the machine, as in a snapshot
    pages       source        u64 first page frame, a multiple of 512; 64 bytes with a bit for each
                              of the 512 pages from there on; the pages whose bits are set, 4 KiB
                              each, in order
    zeros       source        (u64 first page frame, u64 count) for each run of pages that are zero
    round-end   source        u64 number of the round that ends here, from 1 on
    (others)    source        state of the parts of the machine
    ready       source        u64 number of pages sent, u64 number of required parts sent, u64 1 if
                              the guest ran before the switchover, 0 if it was paused
    commit      source        empty
    welcome     destination   empty
    round-ack   destination   u64 number of the round all of which is in memory
    restored    destination   empty
    running     destination   empty
    failed      destination   reason, UTF-8

The version of "migration" is that of the stream (`docs/reference/formats.md`). "failed" never
changes, so that either side can tell the other why it refuses its version.

Every payload has a checksum in its record. Checks that need no earlier message are made here: a
payload that is not exactly as above is a `MigrationError`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from devices.state import MAX_PAYLOAD_BYTES, StateError
from pyvmm.config import MachineConfig
from pyvmm.migration.errors import MigrationError
from pyvmm.state.config_record import encode_config, restore_config
from pyvmm.state.records import HEADER_BYTES, Kind, Record, record_fields, record_header
from pyvmm_native import PAGE_BYTES
from pyvmm_native.memory import GuestMemory
from pyvmm_native.page_blocks import BLOCK_PAGES, gather_block
from pyvmm_native.runs import PageRuns

BITMAP_BYTES = BLOCK_PAGES // 8
HELLO = "migration"
STREAM_VERSION = 2
MAX_ZERO_RUNS = 4096
MAX_REASON_BYTES = 1024

_PAGES = struct.Struct(f"<Q{BITMAP_BYTES}s")
_PAGES_BEGIN = HEADER_BYTES + _PAGES.size
_RUN = struct.Struct("<QQ")
_NUMBER = struct.Struct("<Q")
_TOTALS = struct.Struct("<QQQ")


@dataclass(frozen=True)
class Hello:
    """The first message: the configuration of the guest's machine."""

    config: MachineConfig

    def record(self) -> Record:
        return Record(HELLO, STREAM_VERSION, encode_config(self.config))

    @classmethod
    def read(cls, record: Record) -> Hello:
        try:
            return cls(restore_config(record_fields(record, SOURCE_KINDS[HELLO])))
        except StateError as error:
            raise MigrationError(str(error)) from error


@dataclass(frozen=True)
class Pages:
    """Contents of those of 512 pages whose bits are set."""

    first_pfn: int
    bitmap: bytes
    data: bytes | memoryview

    def record(self) -> Record:
        head = _PAGES.pack(self.first_pfn, self.bitmap)
        return _record("pages", b"".join((head, self.data)))

    @classmethod
    def read(cls, record: Record) -> Pages:
        payload = record.payload
        if len(payload) < _PAGES.size:
            raise _wrong_size(record)
        first_pfn, bitmap = _PAGES.unpack_from(payload)
        count = int.from_bytes(bitmap, "little").bit_count()
        if first_pfn % BLOCK_PAGES or first_pfn >> 40:
            raise MigrationError(f"no block of pages begins at page frame {first_pfn:#x}")
        if not count or len(payload) != _PAGES.size + count * PAGE_BYTES:
            raise MigrationError(f"message 'pages' has {len(payload)} bytes for {count} pages")
        return cls(first_pfn, bitmap, memoryview(payload)[_PAGES.size :])

    @property
    def runs(self) -> PageRuns:
        """The pages."""
        return PageRuns.from_bitmap(self.bitmap, self.first_pfn)


class PagesBuffer:
    """A buffer for one `Pages` message, used again for the next one.

    New memory for each message would cost more, in page faults, than the copy itself.

    Threads: migration.
    """

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(_PAGES_BEGIN + BLOCK_PAGES * PAGE_BYTES))

    def encoded(self, memory: GuestMemory, first_pfn: int, bitmap: bytes) -> memoryview:
        """Return the encoded message of those pages as they are now; valid until the next call."""
        _PAGES.pack_into(self._buffer, HEADER_BYTES, first_pfn, bitmap)
        size = gather_block(memory, first_pfn, bitmap, self._buffer[_PAGES_BEGIN:])
        message = self._buffer[: _PAGES_BEGIN + size]
        version = SOURCE_KINDS["pages"].version
        message[:HEADER_BYTES] = record_header("pages", version, message[HEADER_BYTES:])
        return message


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


@dataclass(frozen=True)
class DeviceState:
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

    def record(self) -> Record:
        return _record("welcome")

    @classmethod
    def read(cls, record: Record) -> Welcome:
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


FromSource: TypeAlias = Hello | Pages | Zeros | RoundEnd | DeviceState | Ready | Commit
FromDestination: TypeAlias = Welcome | RoundAck | StateRestored | Running | Failed

SOURCE_KINDS = {
    HELLO: Kind(STREAM_VERSION, MAX_PAYLOAD_BYTES),
    "pages": Kind(1, _PAGES.size + BLOCK_PAGES * PAGE_BYTES),
    "zeros": Kind(1, MAX_ZERO_RUNS * _RUN.size),
    "round-end": Kind(1, _NUMBER.size),
    "ready": Kind(1, _TOTALS.size),
    "commit": Kind(1, 0),
}
DESTINATION_KINDS = {
    "welcome": Kind(1, 0),
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
