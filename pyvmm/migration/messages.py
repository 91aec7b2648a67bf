# SPDX-License-Identifier: Apache-2.0
"""What source and destination can say to each other; each message is a record (`pyvmm.state`).

    kind        from          payload
    migration   source        the configuration of the machine, as in a snapshot
    pages       source        u64 first page frame, a multiple of 512; 64 bytes with a bit for each
                              of the 512 pages from there on; the pages whose bits are set, 4 KiB
                              each, in order
    zeros       source        (u64 first page frame, u64 count) for each run of pages that are zero
    round       source        u64 number of the round that ends here, from 1 on
    (others)    source        parts of the machine
    ready       source        u64 how many pages have been sent, u64 how many parts, u64 1 if the
                              guest shall run, 0 if it was paused
    commit      source        nothing
    welcome     destination   nothing
    arrived     destination   u64 number of the round all of which is in memory
    complete    destination   nothing
    running     destination   nothing
    failed      destination   why, UTF-8

Every payload has a checksum in its record. What is read is checked here as far as it can be without
having seen the messages before: a payload that is not exactly as above is a `MigrationError`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from devices.state import MAX_PAYLOAD_BYTES, Fields, StateError, decode
from pyvmm.config import MachineConfig
from pyvmm.migration.errors import MigrationError
from pyvmm.state.config_record import encode_config, restore_config
from pyvmm.state.records import HEADER_BYTES, Kind, Record, record_header
from pyvmm_native import PAGE_BYTES
from pyvmm_native.memory import GuestMemory
from pyvmm_native.page_blocks import BLOCK_PAGES, gather_block
from pyvmm_native.runs import PageRuns

BITMAP_BYTES = BLOCK_PAGES // 8
VERSION = 1
MAX_ZERO_RUNS = 4096
MAX_REASON_BYTES = 1024

_PAGES = struct.Struct(f"<Q{BITMAP_BYTES}s")
_PAGES_BEGIN = HEADER_BYTES + _PAGES.size
_RUN = struct.Struct("<QQ")
_NUMBER = struct.Struct("<Q")
_TOTALS = struct.Struct("<QQQ")


@dataclass(frozen=True)
class Hello:
    """The first message: this is the machine."""

    config: MachineConfig

    def record(self) -> Record:
        return Record("migration", VERSION, encode_config(self.config))

    @classmethod
    def read(cls, payload: bytes) -> Hello:
        try:
            return cls(restore_config(Fields("migration", decode(payload, "migration"))))
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
        return Record("pages", VERSION, b"".join((head, self.data)))

    @classmethod
    def read(cls, payload: bytes) -> Pages:
        if len(payload) < _PAGES.size:
            raise MigrationError(f"message 'pages' has {len(payload)} bytes")
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
    """Room for one `Pages` message, used again and again.

    Memory of its own for each message would cost more, in page faults, than the copy itself.
    """

    def __init__(self) -> None:
        self._room = memoryview(bytearray(_PAGES_BEGIN + BLOCK_PAGES * PAGE_BYTES))

    def encoded(self, memory: GuestMemory, first_pfn: int, bitmap: bytes) -> memoryview:
        """The encoded record of those pages as they are now; good until the next call."""
        _PAGES.pack_into(self._room, HEADER_BYTES, first_pfn, bitmap)
        size = gather_block(memory, first_pfn, bitmap, self._room[_PAGES_BEGIN:])
        message = self._room[: _PAGES_BEGIN + size]
        message[:HEADER_BYTES] = record_header("pages", VERSION, message[HEADER_BYTES:])
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
        return Record("zeros", VERSION, b"".join(_RUN.pack(*run) for run in self.runs))

    @classmethod
    def read(cls, payload: bytes) -> Zeros:
        if not payload or len(payload) % _RUN.size:
            raise MigrationError(f"message 'zeros' has {len(payload)} bytes")
        try:
            return cls(PageRuns(_RUN.iter_unpack(payload)))
        except ValueError as error:
            raise MigrationError(f"message 'zeros': {error}") from error


@dataclass(frozen=True)
class RoundEnd:
    """Everything of round `number` has been sent."""

    number: int

    def record(self) -> Record:
        return Record("round", VERSION, _NUMBER.pack(self.number))

    @classmethod
    def read(cls, payload: bytes) -> RoundEnd:
        return cls(*_unpacked("round", _NUMBER, payload))


@dataclass(frozen=True)
class DeviceState:
    """One part of the machine, its payload not yet looked at."""

    part: Record

    def record(self) -> Record:
        return self.part


@dataclass(frozen=True)
class Ready:
    """Nothing is missing: so many pages (repeated ones count again) and parts have been sent."""

    pages: int
    parts: int
    runs: bool
    """The guest ran when it was stopped for this, and shall run again."""

    def record(self) -> Record:
        return Record("ready", VERSION, _TOTALS.pack(self.pages, self.parts, self.runs))

    @classmethod
    def read(cls, payload: bytes) -> Ready:
        pages, parts, runs = _unpacked("ready", _TOTALS, payload)
        if runs > 1:
            raise MigrationError(f"message 'ready' says {runs} where 0 or 1 was due")
        return cls(pages, parts, bool(runs))


@dataclass(frozen=True)
class Commit:
    """The guest is the destination's; the source never runs it again."""

    def record(self) -> Record:
        return Record("commit", VERSION, b"")

    @classmethod
    def read(cls, payload: bytes) -> Commit:
        return cls(*_unpacked("commit", _NOTHING, payload))


@dataclass(frozen=True)
class Welcome:
    """The destination has a machine like that, and room for it."""

    def record(self) -> Record:
        return Record("welcome", VERSION, b"")

    @classmethod
    def read(cls, payload: bytes) -> Welcome:
        return cls(*_unpacked("welcome", _NOTHING, payload))


@dataclass(frozen=True)
class RoundAck:
    """All of round `number` is in memory."""

    number: int

    def record(self) -> Record:
        return Record("arrived", VERSION, _NUMBER.pack(self.number))

    @classmethod
    def read(cls, payload: bytes) -> RoundAck:
        return cls(*_unpacked("arrived", _NUMBER, payload))


@dataclass(frozen=True)
class StateRestored:
    """The guest could run here; it does not yet."""

    def record(self) -> Record:
        return Record("complete", VERSION, b"")

    @classmethod
    def read(cls, payload: bytes) -> StateRestored:
        return cls(*_unpacked("complete", _NOTHING, payload))


@dataclass(frozen=True)
class Running:
    """The guest runs here."""

    def record(self) -> Record:
        return Record("running", VERSION, b"")

    @classmethod
    def read(cls, payload: bytes) -> Running:
        return cls(*_unpacked("running", _NOTHING, payload))


@dataclass(frozen=True)
class Failed:
    """The guest does not run here and never will."""

    reason: str

    def record(self) -> Record:
        return Record("failed", VERSION, _reason_bytes(self.reason))

    @classmethod
    def read(cls, payload: bytes) -> Failed:
        return cls(_reason_text(payload))


FromSource: TypeAlias = Hello | Pages | Zeros | RoundEnd | DeviceState | Ready | Commit
FromDestination: TypeAlias = Welcome | RoundAck | StateRestored | Running | Failed

SOURCE_KINDS = {
    "migration": Kind(VERSION, MAX_PAYLOAD_BYTES),
    "pages": Kind(VERSION, _PAGES.size + BLOCK_PAGES * PAGE_BYTES),
    "zeros": Kind(VERSION, MAX_ZERO_RUNS * _RUN.size),
    "round": Kind(VERSION, _NUMBER.size),
    "ready": Kind(VERSION, _TOTALS.size),
    "commit": Kind(VERSION, 0),
}
DESTINATION_KINDS = {
    "welcome": Kind(VERSION, 0),
    "arrived": Kind(VERSION, _NUMBER.size),
    "complete": Kind(VERSION, 0),
    "running": Kind(VERSION, 0),
    "failed": Kind(VERSION, MAX_REASON_BYTES),
}

_NOTHING = struct.Struct("")


def _unpacked(kind: str, layout: struct.Struct, payload: bytes) -> tuple[int, ...]:
    if len(payload) != layout.size:
        raise MigrationError(f"message {kind!r} has {len(payload)} bytes")
    return layout.unpack(payload)


def _reason_bytes(reason: str) -> bytes:
    return reason.encode("utf-8", "backslashreplace")[:MAX_REASON_BYTES]


def _reason_text(payload: bytes) -> str:
    """What the other side says, fit to be shown on a terminal."""
    text = payload.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else "?" for char in text)
