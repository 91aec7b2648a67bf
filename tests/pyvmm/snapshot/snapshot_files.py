# SPDX-License-Identifier: Apache-2.0
"""Small snapshot files for the tests that write, read and replace them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from pyvmm.config import MachineConfig
from pyvmm.memory.ram import Ram
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.report import PageReport
from pyvmm.snapshot.writer import SnapshotWriter
from pyvmm.state.config_record import config_record
from pyvmm.state.records import Kind, Record
from pyvmm.units import MIB
from pyvmm_native.page_blocks import BLOCK_PAGES
from pyvmm_native.pages import bitmap
from pyvmm_native.runs import PageRuns

KINDS = {"part": Kind(2, 100, max_instances=3)}
PARTS = [Record("part", 2, b"two", 2), Record("part", 2, b"one")]
RAM_BYTES = 65 * MIB
PAGES = PageRuns([(0, 3), (511, 2), (1024, 512), (RAM_BYTES // 4096 - 1, 1)])


def config(ram_bytes: int = RAM_BYTES) -> MachineConfig:
    return MachineConfig(
        kernel=Path("/k\udcff"),
        initrd=None,
        command_line="console=ttyS0 é",
        ram_bytes=ram_bytes,
        vcpus=2,
        dialect="standard",
        offer=("reporting",),
    )


def report(pages: PageRuns, ram_bytes: int = RAM_BYTES) -> PageReport:
    return PageReport(pages.pages, 0, 0, ram_bytes // 4096 - pages.pages, 7, "no answer")


def filled(pages: PageRuns = PAGES, ram_bytes: int = RAM_BYTES, seed: int = 1) -> Ram:
    ram, numbers = Ram(ram_bytes), random.Random(seed)
    for start, count in pages:
        ram.memory.write(start * 4096, numbers.randbytes(count * 4096))
    return ram


def write(
    path: Path,
    ram: Ram,
    pages: PageRuns = PAGES,
    records: list[Record] = PARTS,
    on_block: Callable[[int], object] = lambda number: None,
    force: bool = False,
) -> int:
    own = [config_record(config(ram.size_bytes)), report(pages, ram.size_bytes).record()]
    with SnapshotWriter(path, ram.memory, force=force) as file:
        for number, bits in blocks_of(pages, ram):
            file.store(number, bits, bits)
            on_block(number)
        return file.finish([*own, *records])


def blocks_of(pages: PageRuns, ram: Ram) -> Iterator[tuple[int, int]]:
    """Yield number and bits of each block that has some of `pages`."""
    for start_pfn, count in ram.memory.page_ranges:
        for first_pfn in range(start_pfn, start_pfn + count, BLOCK_PAGES):
            if bits := int.from_bytes(bitmap(pages, first_pfn, BLOCK_PAGES), "little"):
                yield first_pfn // BLOCK_PAGES, bits


def read(path: Path) -> Ram:
    with SnapshotFile(path, KINDS) as snapshot:
        ram = Ram(snapshot.config.ram_bytes)
        snapshot.load(ram.memory)
    return ram


def same(one: Ram, other: Ram) -> bool:
    return one.size_bytes == other.size_bytes and all(
        one.memory.read(gpa, length) == other.memory.read(gpa, length)
        for gpa, length in one.memory.regions
    )
