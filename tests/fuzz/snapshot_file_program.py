# SPDX-License-Identifier: Apache-2.0
"""Arbitrary bytes as a snapshot, for the fuzzer, hypothesis and the corpus.

Invariant: `SnapshotFile` either opens a file, and then checks every page of it, or raises
`UserError`. Nothing else happens, whatever the file holds.

Bytes become a file in one of two ways. Raw, they are the file. Otherwise they choose the contents
of a file whose checksums are right, as no fuzzer guesses those: a header with right or wrong
numbers, and records in any order and number, each a valid one, a valid one with changed bytes, or
one made of bytes.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from devices.state import StateError, decode
from pyvmm.config import MachineConfig
from pyvmm.errors import UserError
from pyvmm.machine.catalogue import part_kinds
from pyvmm.snapshot import format as layout
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.report import PageReport
from pyvmm.state.config_record import config_record
from pyvmm.state.records import Record
from pyvmm.units import GIB, MIB
from pyvmm_native.checksum import crc32c

RAM_SIZES = (64 * MIB, 65 * MIB, 4 * GIB, 16 * GIB)
KIND_NAMES = (*sorted({**layout.OWN_KINDS, **part_kinds()}), layout.HEADER, "vgpu", "")
MAX_RECORDS = 16
PAGE = bytes(4096)


class Choices:
    """Takes values from bytes, and zeros when they are used up."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._position

    def take(self, count: int) -> bytes:
        taken = self._data[self._position : self._position + count]
        self._position += len(taken)
        return taken.ljust(count, b"\0")

    def number(self, size: int = 1) -> int:
        return int.from_bytes(self.take(size), "little")


def run(data: bytes) -> bool:
    """Make a snapshot of `data` and read it; return whether it is valid."""
    fd = os.memfd_create("snapshot")
    try:
        os.write(fd, _file(data))
        return _read(Path(f"/proc/self/fd/{fd}"))
    finally:
        os.close(fd)


def _read(path: Path) -> bool:
    try:
        with SnapshotFile(path, part_kinds()) as snapshot:
            pages: list[int] = []
            snapshot.check(pages.append)
            assert sum(pages) <= snapshot.header.room == path.stat().st_size // 4096 - 1
            for part in snapshot.parts:
                with suppress(StateError):
                    decode(part.payload, part.kind)
    except UserError:
        return False
    return True


def _file(data: bytes) -> bytes:
    choices = Choices(data)
    how = choices.number()
    if how == 0:
        return data[1:]
    ram_bytes = RAM_SIZES[how % len(RAM_SIZES)]
    pages = choices.number() % 8
    good = _good_records(ram_bytes, pages)
    records = good if how & 0x40 else []
    while choices.left and len(records) < MAX_RECORDS:
        records.append(_record(choices, good))
    tail = b"".join(map(_encoded, records))
    numbers = [ram_bytes, pages, len(tail)]
    if how & 0x80:
        numbers[choices.number() % 3] ^= choices.number(8)
    header = layout.Header(*numbers).encode()
    return header + pages * PAGE + tail


def _encoded(record: Record) -> bytes:
    try:
        return record.encode()
    except ValueError:  # a kind without a name
        return record.payload


def _good_records(ram_bytes: int, pages: int) -> list[Record]:
    config = MachineConfig(Path("/k"), None, "quiet", ram_bytes, 1, "bitmap")
    report = PageReport(pages, 0, 0, ram_bytes // 4096 - pages, 0, "not asked")
    bitmap = ((1 << pages) - 1).to_bytes(layout.BITMAP_BYTES, "little")
    crc = crc32c(pages * PAGE)
    blocks = [layout.Block(1, 0, crc, bitmap)] if pages else []
    return [config_record(config), report.record(), layout.encode_blocks(blocks)]


def _record(choices: Choices, good: list[Record]) -> Record:
    how = choices.number()
    if how & 1:
        record = good[how // 2 % len(good)]
        payload = bytearray(record.payload)
        for _ in range(how >> 4):
            at = choices.number(2) % (len(payload) + 1)
            payload[at : at + 1] = choices.take(1)
        return Record(record.kind, record.version, bytes(payload))
    kind = KIND_NAMES[choices.number() % len(KIND_NAMES)]
    payload = bytearray(choices.take(choices.number(2) % 1024))
    version, instance, marks = choices.number(), choices.number(), choices.number()
    compatible = min(marks >> 1, max(version - 1, 0))
    return Record(kind, version, bytes(payload), instance, bool(marks & 1), compatible)
