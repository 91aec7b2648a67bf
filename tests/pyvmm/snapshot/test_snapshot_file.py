# SPDX-License-Identifier: Apache-2.0
"""Snapshot files: written and read back, and refused when they are damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from devices.state import Fields, StateError
from pyvmm.cli.remedies import remedy
from pyvmm.config import MAX_RAM_BYTES
from pyvmm.errors import UserError
from pyvmm.snapshot import format as layout
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.snapshot.report import PageReport
from pyvmm.state.config_record import config_record
from pyvmm.state.records import Record, RecordError
from pyvmm.units import GIB, MIB
from pyvmm_native.runs import PageRuns
from tests.pyvmm.snapshot.snapshot_files import (
    KINDS,
    PAGES,
    PARTS,
    RAM_BYTES,
    config,
    filled,
    read,
    report,
    same,
    write,
)


def test_a_snapshot_is_read_as_it_was_written(snapshot: Path) -> None:
    with SnapshotFile(snapshot, KINDS) as opened:
        assert opened.config == config()
        assert opened.report == report(PAGES)
        assert opened.parts == PARTS
        seen: list[int] = []
        opened.check(seen.append)
        assert seen == [4, 1, 512, 1]
    assert same(read(snapshot), filled())
    assert os.stat(snapshot).st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["stored", "zero", "unused", "absent", "ballooned"])
def test_a_report_counts_no_more_pages_than_a_machine_can_have(name: str) -> None:
    most = MAX_RAM_BYTES // 4096
    counts = dict.fromkeys(("stored", "zero", "unused", "absent", "ballooned"), most)
    read = PageReport.restore(Fields("report", {**counts, "asked": "yes"}))
    assert read == PageReport(most, most, most, most, most, "yes")
    with pytest.raises(StateError, match=f"{name} is {most + 1}"):
        PageReport.restore(Fields("report", {**counts, name: most + 1, "asked": "yes"}))


def test_a_report_with_an_unknown_count_is_refused() -> None:
    counts = dict.fromkeys(("stored", "zero", "unused", "absent", "ballooned", "lost"), 1)
    with pytest.raises(StateError, match="lost"):
        PageReport.restore(Fields("report", {**counts, "asked": "yes"}))


def test_the_file_is_hardly_larger_than_its_pages(snapshot: Path) -> None:
    assert PAGES.pages * 4096 < snapshot.stat().st_size < (PAGES.pages + 2) * 4096


def test_pages_above_4_gib_are_saved(tmp_path: Path) -> None:
    pages = PageRuns([(3 * GIB // 4096 - 2, 2), (4 * GIB // 4096, 1), (5 * GIB // 4096 - 1, 1)])
    ram = filled(pages, 4 * GIB)
    write(tmp_path / "s", ram, pages)
    copy = read(tmp_path / "s")
    for start, count in pages:
        gpa, length = start * 4096, count * 4096
        assert copy.memory.read(gpa, length) == ram.memory.read(gpa, length)


@pytest.mark.parametrize("part", range(12))
def test_a_flipped_bit_is_detected_anywhere_in_the_file(snapshot: Path, part: int) -> None:
    """One in each part of the file but the padding after the header."""
    data = bytearray(snapshot.read_bytes())
    header = 52 + 24
    places = [*range(header), *range(4096, len(data))]
    place = places[len(places) * part // 12 + part]
    data[place] ^= 1 << part % 8
    snapshot.write_bytes(data)
    with pytest.raises(UserError, match="cannot be used") as caught:
        read(snapshot)
    assert remedy(caught.value) == "take another one"


@pytest.mark.parametrize("size", [0, 1, 75, 76, 4095, 4096, 10000, -5000, -1])
def test_a_truncated_file_is_refused(snapshot: Path, size: int) -> None:
    os.truncate(snapshot, size % snapshot.stat().st_size)
    with pytest.raises(UserError, match=r"it is not a snapshot|it has \d+ bytes and not"):
        read(snapshot)


def test_trailing_bytes_are_refused(snapshot: Path) -> None:
    with snapshot.open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="bytes and not"):
        read(snapshot)


def rewritten(path: Path, *records: Record, **header: int) -> None:
    """Replace the records of the file; all checksums are right."""
    pages = path.read_bytes()[4096 : (1 + PAGES.pages) * 4096]
    tail = b"".join(record.encode() for record in records)
    numbers = {"ram_bytes": RAM_BYTES, "room": PAGES.pages, "records_bytes": len(tail), **header}
    path.write_bytes(layout.Header(**numbers).encode() + pages + tail)


def own_records(path: Path) -> list[Record]:
    with SnapshotFile(path, KINDS) as snapshot:
        blocks = layout.encode_blocks(snapshot.blocks)
    return [config_record(config()), report(PAGES).record(), blocks]


def refused(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(path)


def test_a_missing_record_is_refused_by_name(snapshot: Path) -> None:
    whole = own_records(snapshot)
    for record in whole:
        rewritten(snapshot, *(each for each in whole if each is not record))
        refused(snapshot, f"record '{record.kind}' is missing")


def test_a_repeated_record_is_refused_by_name(snapshot: Path) -> None:
    rewritten(snapshot, *own_records(snapshot), PARTS[0], PARTS[0])
    refused(snapshot, "record 'part' appears twice")


@pytest.mark.parametrize("dropped_bytes", [1, 60])
def test_an_incomplete_last_record_is_refused(snapshot: Path, dropped_bytes: int) -> None:
    records = [*own_records(snapshot), Record("part", 2, bytes(20))]
    tail = b"".join(record.encode() for record in records)[:-dropped_bytes]
    rewritten(snapshot, *records, records_bytes=len(tail))
    os.truncate(snapshot, snapshot.stat().st_size - dropped_bytes)
    refused(snapshot, "its last record is incomplete")


def test_a_configuration_with_another_ram_size_is_refused(snapshot: Path) -> None:
    _, *rest = own_records(snapshot)
    rewritten(snapshot, config_record(config(128 * MIB)), *rest)
    refused(snapshot, "record 'config' is of a guest with 134217728 bytes of RAM")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ram_bytes", 1 << 60, "bytes of RAM here"),
        ("ram_bytes", RAM_BYTES + 1, "bytes of RAM here"),
        ("room", 1 << 60, "claims more pages or records"),
        ("records_bytes", 1 << 60, "claims more pages or records"),
    ],
)
def test_a_header_with_impossible_sizes_is_refused(
    snapshot: Path, name: str, value: int, message: str
) -> None:
    rewritten(snapshot, *own_records(snapshot), **{name: value})
    refused(snapshot, message)


@pytest.mark.parametrize("size", [0, 23])
def test_a_header_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(RecordError, match=f"record 'snapshot' has {size} bytes"):
        layout.Header.decode(Record(layout.HEADER, layout.VERSION, bytes(size)))


ONE = b"\1".ljust(64, b"\0")


@pytest.mark.parametrize(
    "blocks",
    [
        [layout.Block(1, 0, 0, ONE), layout.Block(0, 1, 0, ONE)],
        [layout.Block(0, 0, 0, ONE), layout.Block(0, 1, 0, ONE)],
        [layout.Block(0, 0, 0, bytes(64))],
        [layout.Block(32, 0, 0, b"\xff" * 64)],  # half of it is RAM
        [layout.Block(33, 0, 0, ONE)],
        [layout.Block(0xFFFF_FFFF, 0, 0, ONE)],
        [layout.Block(0, PAGES.pages, 0, ONE)],  # beyond the room for pages
        [layout.Block(0, 0xFFFF_FFFF, 0, ONE)],
        [layout.Block(0, 3, 0, ONE), layout.Block(1, 3, 0, ONE)],  # in one place
        [layout.Block(0, 1, 0, ONE), layout.Block(1, 0, 0, b"\3".ljust(64, b"\0"))],
    ],
)
def test_an_impossible_page_index_is_refused(snapshot: Path, blocks: list[layout.Block]) -> None:
    config_, report_, _ = own_records(snapshot)
    rewritten(snapshot, config_, report_, layout.encode_blocks(blocks))
    refused(snapshot, "record 'pages' names")
