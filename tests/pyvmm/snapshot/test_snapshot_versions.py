# SPDX-License-Identifier: Apache-2.0
"""Snapshots of every version are read or refused as `docs/reference/formats.md` says."""

from __future__ import annotations

from pathlib import Path

import pytest

from devices.state import encode
from pyvmm.errors import UserError
from pyvmm.memory.ram import Ram
from pyvmm.snapshot import format as layout
from pyvmm.snapshot.reader import SnapshotFile
from pyvmm.state.config_record import config_record
from pyvmm.state.records import Kind, Record, fields_upgrade
from pyvmm_native import PAGE_BYTES
from tests.pyvmm.snapshot.sample_snapshot import CONFIG, KINDS, PAGES, PARTS, REPORT, write_sample

DATA = Path(__file__).parent / "data"
SAMPLE = DATA / f"v{layout.VERSION}.snapshot"


def test_the_snapshot_of_version_3_is_read() -> None:
    with SnapshotFile(SAMPLE, KINDS) as snapshot:
        assert (snapshot.config, snapshot.report) == (CONFIG, REPORT)
        assert snapshot.parts == PARTS
        ram = Ram(CONFIG.ram_bytes)
        snapshot.load(ram.memory)
        assert snapshot.pages == len(PAGES)
    for pfn, byte in PAGES.items():
        assert ram.memory.read(pfn * PAGE_BYTES, PAGE_BYTES) == byte * PAGE_BYTES


def test_the_sample_equals_the_current_format(tmp_path: Path) -> None:
    write_sample(tmp_path / "snapshot")
    assert (tmp_path / "snapshot").read_bytes() == SAMPLE.read_bytes()


@pytest.mark.parametrize("version", [1, 2])
def test_snapshots_of_older_formats_are_refused_by_name(version: int) -> None:
    message = f"its format has version {version}; this pyvmm reads version 3"
    with pytest.raises(UserError, match=message):
        SnapshotFile(DATA / f"v{version}.snapshot", KINDS)


def test_a_snapshot_of_a_newer_format_is_refused_by_name(tmp_path: Path) -> None:
    data = bytearray(SAMPLE.read_bytes())
    header = Record("snapshot", 4, b"no longer three numbers").encode()
    data[: len(header)] = header
    with pytest.raises(UserError, match="format has version 4; this pyvmm reads version 3"):
        opened(tmp_path, bytes(data))


def opened(directory: Path, data: bytes, kinds: dict[str, Kind] = KINDS) -> SnapshotFile:
    path = directory / "snapshot"
    path.write_bytes(data)
    return SnapshotFile(path, kinds)


def with_records(*more: Record, config: Record | None = None) -> bytes:
    """Return the sample with other records after its pages."""
    with SnapshotFile(SAMPLE, KINDS) as snapshot:
        room = snapshot.header.room
        blocks = layout.encode_blocks(snapshot.blocks)
    records = [config or config_record(CONFIG), REPORT.record(), blocks, *more]
    tail = b"".join(record.encode() for record in records)
    pages = SAMPLE.read_bytes()[layout.PAGES_OFFSET :][: room * PAGE_BYTES]
    return layout.Header(CONFIG.ram_bytes, room, len(tail)).encode() + pages + tail


def test_an_optional_part_that_is_unknown_is_skipped(tmp_path: Path) -> None:
    data = with_records(Record("vgpu", 5, b"frames", 2, optional=True), *PARTS)
    with opened(tmp_path, data) as snapshot:
        assert snapshot.parts == PARTS


def test_a_required_part_that_is_unknown_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="records of kind 'vgpu' are not known here"):
        opened(tmp_path, with_records(Record("vgpu", 5, b"frames")))


def test_a_newer_part_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'part' has version 2; this pyvmm reads version 1"):
        opened(tmp_path, with_records(Record("part", 2, b"", optional=True)))


def test_a_newer_part_is_read_if_it_is_compatible(tmp_path: Path) -> None:
    part = Record("part", 3, b"three", compatible=2)
    with opened(tmp_path, with_records(part)) as snapshot:
        assert snapshot.parts == [part]


def test_unknown_fields_of_a_newer_compatible_record_are_ignored(tmp_path: Path) -> None:
    with SnapshotFile(SAMPLE, KINDS) as snapshot:
        assert snapshot.config == CONFIG
    payload = config_record(CONFIG).payload.replace(b"{", b'{"added":1,', 1)
    data = with_records(config=Record("config", 2, payload, compatible=1))
    with opened(tmp_path, data) as snapshot:
        assert snapshot.config == CONFIG
    data = with_records(config=Record("config", 1, payload))
    with pytest.raises(UserError, match="config: added is not known here"):
        opened(tmp_path, data)


def test_an_older_part_is_upgraded(tmp_path: Path) -> None:
    upgrade = fields_upgrade(lambda old: {**old, "added": 0})
    kinds = {"part": Kind(2, 100, upgrades=(upgrade,))}
    data = with_records(Record("part", 1, encode({"speed": 9})))
    with opened(tmp_path, data, kinds) as snapshot:
        assert snapshot.parts == [Record("part", 2, encode({"added": 0, "speed": 9}))]
