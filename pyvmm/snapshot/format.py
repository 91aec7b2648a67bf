# SPDX-License-Identifier: Apache-2.0
"""The layout of a snapshot file.

    0                 record "snapshot": bytes of RAM, pages of room, bytes of records
    4096              guest pages, 4 KiB each
    4096 * (1 + n)    records: "config", "report", the parts of the machine, "pages"
    end of file

The three numbers of the first record (u64 each) determine where everything begins, and must add up
to the size of the file. Guest pages are stored in blocks of 2 MiB of guest-physical address space
(`pyvmm_native.page_blocks`). Record "pages" has an entry of 76 bytes for each block of which a page
is in the file, by ascending address: block number (u32), the place of its first page (u32, in
pages), CRC-32C of its pages in the file (u32), and a bit for each of the 512 pages. The pages of a
block follow each other; blocks do not overlap. A page that is not in the file is one of zeros. The
pages of a block are found without reading any other block, so a block can be loaded and checked
when the guest needs it.

A block that has grown while the file was being written has moved (`pyvmm.snapshot.writer`). Its old
place is a hole: bytes that are never read, and take no space on file systems with sparse files.

Reading is bounded by limits of the machine, not by what the file claims: RAM by
`config.MAX_RAM_BYTES`, and records by the limits of their kinds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from devices.state import MAX_PAYLOAD_BYTES
from pyvmm.config import MAX_RAM_BYTES, MAX_VCPUS, MIN_RAM_BYTES
from pyvmm.memory.layout import ram_ranges
from pyvmm.state.config_record import CONFIG, CONFIG_KIND
from pyvmm.state.records import HEADER_BYTES, KIND_BYTES, Kind, Record, RecordError
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES
from pyvmm_native.page_blocks import BLOCK_PAGES

BLOCK_BYTES = BLOCK_PAGES * PAGE_BYTES
BITMAP_BYTES = BLOCK_PAGES // 8
PAGES_OFFSET = PAGE_BYTES

HEADER, REPORT, PAGES = "snapshot", "report", "pages"
VERSION = 3
"""Of the format, which is that of record "snapshot"; see `docs/reference/formats.md`."""
MAX_PARTS = 32
"""Most kinds of record that a machine has."""
MAX_ROUNDS = 5
"""Most rounds in which a block is written, and so may move."""

_HEADER = struct.Struct("<QQQ")
_BLOCK = struct.Struct(f"<III{BITMAP_BYTES}s")
_MAX_BLOCKS = MAX_RAM_BYTES // BLOCK_BYTES
_MAX_RECORDS_BYTES = (MAX_PARTS + MAX_VCPUS) * (HEADER_BYTES + MAX_PAYLOAD_BYTES)

_MAGIC = HEADER.encode().ljust(KIND_BYTES, b"\0")

HEADER_KIND = Kind(VERSION, _HEADER.size)
OWN_KINDS = {
    CONFIG: CONFIG_KIND,
    REPORT: Kind(1, MAX_PAYLOAD_BYTES),
    PAGES: Kind(2, _MAX_BLOCKS * _BLOCK.size),
}
"""Records that every snapshot has in addition to the parts of its machine."""


def begins_snapshot(file: BinaryIO) -> bool:
    """Return True if `file` is a snapshot, of any version, or at least begins like one."""
    return file.read(len(_MAGIC)) == _MAGIC


@dataclass(frozen=True)
class Header:
    """The first record: the layout of the rest of the file."""

    ram_bytes: int
    room: int
    """Number of pages from `PAGES_OFFSET` to the records, holes included."""
    records_bytes: int

    @property
    def records_offset(self) -> int:
        return PAGES_OFFSET + self.room * PAGE_BYTES

    @property
    def file_bytes(self) -> int:
        return self.records_offset + self.records_bytes

    def encode(self) -> bytes:
        """Return the first page of the file."""
        payload = _HEADER.pack(self.ram_bytes, self.room, self.records_bytes)
        return Record(HEADER, VERSION, payload).encode().ljust(PAGES_OFFSET, b"\0")

    @classmethod
    def decode(cls, record: Record) -> Header:
        """Read the header; `RecordError` for impossible numbers."""
        if len(record.payload) != _HEADER.size:
            raise RecordError(f"record {HEADER!r} has {len(record.payload)} bytes")
        header = cls(*_HEADER.unpack(record.payload))
        ram_bytes = header.ram_bytes
        if ram_bytes % MIB or not MIN_RAM_BYTES <= ram_bytes <= MAX_RAM_BYTES:
            raise RecordError(f"a guest cannot have {ram_bytes} bytes of RAM here")
        if (
            header.room > MAX_ROUNDS * ram_bytes // PAGE_BYTES
            or header.records_bytes > _MAX_RECORDS_BYTES
        ):
            raise RecordError("its header claims more pages or records than the guest can have")
        return header


@dataclass(frozen=True)
class Block:
    """The pages of block `number` that are in the file: those whose bit is set in `bitmap`."""

    number: int
    place: int
    """Position of the first of them in the file, in pages from `PAGES_OFFSET`."""
    crc: int
    bitmap: bytes

    @property
    def first_pfn(self) -> int:
        return self.number * BLOCK_PAGES

    @property
    def pages(self) -> int:
        return int.from_bytes(self.bitmap, "little").bit_count()

    @property
    def offset(self) -> int:
        """Offset of the first of them in the file."""
        return PAGES_OFFSET + self.place * PAGE_BYTES


def encode_blocks(blocks: Iterable[Block]) -> Record:
    """Return the record that lists the pages in the file."""
    entries = (_BLOCK.pack(b.number, b.place, b.crc, b.bitmap) for b in blocks)
    return Record(PAGES, OWN_KINDS[PAGES].version, b"".join(entries))


def decode_blocks(record: Record, header: Header) -> list[Block]:
    """Read the blocks; `RecordError` if any is out of order, outside RAM or not in the file."""
    if len(record.payload) % _BLOCK.size:
        raise RecordError(f"record {PAGES!r} has {len(record.payload)} bytes")
    ranges = ram_ranges(header.ram_bytes)
    blocks: list[Block] = []
    last = -1
    for number, place, crc, bitmap in _BLOCK.iter_unpack(record.payload):
        bits = int.from_bytes(bitmap, "little")
        if number <= last or not bits or bits & ~_bits_of_ram(number, ranges):
            raise RecordError(f"record {PAGES!r} names pages that are not RAM of the guest")
        blocks.append(Block(number, place, crc, bitmap))
        last = number
    if any(end < start for start, end in holes(blocks, header.room)):
        raise RecordError(f"record {PAGES!r} names pages that are not in the file")
    return blocks


def holes(blocks: Iterable[Block], room: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the gaps, many of them empty, before each block and at the end.

    A gap that ends before it starts shows that two blocks overlap, or that one exceeds `room`.
    """
    end = 0
    for block in sorted(blocks, key=lambda block: block.place):
        yield end, block.place
        end = block.place + block.pages
    yield end, room


def _bits_of_ram(number: int, ranges: Sequence[tuple[int, int]]) -> int:
    """Return a bit for each page of block `number` in one of the (gpa, bytes) `ranges` of RAM."""
    start = number * BLOCK_BYTES
    for gpa, length in ranges:
        if gpa <= start < gpa + length:
            return (1 << min((gpa + length - start) // PAGE_BYTES, BLOCK_PAGES)) - 1
    return 0
