# SPDX-License-Identifier: Apache-2.0
"""Arbitrary bytes as a recording, with `tests.fuzz.recording_file_program`."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
