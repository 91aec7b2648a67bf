# SPDX-License-Identifier: Apache-2.0
"""Arbitrary bytes as a recording, with `tests.fuzz.recording_file_program`."""

from __future__ import annotations

import contextlib
import io
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.trace import recording
from pyvmm.trace.errors import RecordingUnusable
from pyvmm.trace.recording import Recording
from pyvmm.trace.recording_format import ALIGNMENT, CHUNK_HEADER_BYTES, CHUNK_MAGIC, FileHeader
from tests.fuzz import recording_file_program


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_any_file_is_read_or_refused(data: bytes) -> None:
    recording_file_program.run(data)


@settings(max_examples=500)
@given(st.integers(1, 255), st.binary(min_size=1, max_size=400))
def test_any_chunks_with_right_checksums_are_read_or_refused(how: int, data: bytes) -> None:
    recording_file_program.run(bytes([how]) + data)


@pytest.mark.parametrize("tables", range(len(recording_file_program.TABLES)))
def test_any_tables_are_read_or_refused(tables: int) -> None:
    step = len(recording_file_program.TABLES)
    for how in range(tables, 128, step):
        recording_file_program.run(b"\x04\x80" + bytes(8) + bytes([how, 1, 0, 0, 0, 1, 0, 0, 0]))


@pytest.mark.parametrize("how", [4, 5])
def test_a_good_recording_is_valid(how: int) -> None:
    assert recording_file_program.run(bytes([how, 0]) + bytes(8) + b"\0" + bytes(8))


def test_sequence_numbers_wrap_around() -> None:
    """A chunk that begins with the last number, and one that follows it."""
    first = bytes([2]) + bytes(7 * [255]) + bytes([255]) + bytes(8)
    assert not recording_file_program.run(bytes([4]) + first + bytes([0]) + bytes(8))


# --- Files that are made to take long ---------------------------------------------------------
class CountingFile(io.FileIO):
    """A file that counts the bytes that are read from it."""

    bytes_read = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size)
        CountingFile.bytes_read += len(data)
        return data


def false_chunk(size_bytes: int) -> bytes:
    """Return 64 bytes that begin like a chunk of that size, whose checksum is wrong."""
    body_bytes = size_bytes - CHUNK_HEADER_BYTES
    return struct.pack("<4sIII", CHUNK_MAGIC, 0, body_bytes, 100).ljust(ALIGNMENT, b"\0")


@pytest.mark.parametrize("limit_bytes", [0, 1 << 30])
@pytest.mark.parametrize("claims", [[64], [1 << 16], [64, 1 << 12, 1 << 17]])
@pytest.mark.parametrize("count", [1 << 12, 1 << 13])
def test_a_file_full_of_false_chunks_is_read_a_few_times(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit_bytes: int,
    claims: list[int],
    count: int,
) -> None:
    chunks = b"".join(false_chunk(claims[i % len(claims)]) for i in range(count))
    path = tmp_path / "r"
    path.write_bytes(FileHeader(limit_bytes, {}).encode() + chunks)
    monkeypatch.setattr(recording, "open_regular_file", CountingFile)
    CountingFile.bytes_read = 0
    with contextlib.suppress(RecordingUnusable):
        Recording(path).__exit__()
    assert CountingFile.bytes_read < 4 * path.stat().st_size
