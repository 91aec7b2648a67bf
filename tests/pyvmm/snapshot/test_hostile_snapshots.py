# SPDX-License-Identifier: Apache-2.0
"""Arbitrary bytes as a snapshot file, with `tests.fuzz.snapshot_file_program`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import snapshot_file_program


@given(st.binary(max_size=600))
def test_arbitrary_bytes_raise_user_errors_only(data: bytes) -> None:
    snapshot_file_program.run(data)


@given(st.binary(max_size=200))
def test_arbitrary_records_beside_valid_ones_raise_user_errors_only(data: bytes) -> None:
    snapshot_file_program.run(b"\x41\x03" + data)


@pytest.mark.parametrize("how", [0x40, 0x41, 0x42, 0x43])
@pytest.mark.parametrize("pages", range(8))
def test_valid_snapshots_are_read(how: int, pages: int) -> None:
    assert snapshot_file_program.run(bytes([how, pages]))
    assert not snapshot_file_program.run(bytes([how, pages, 2, 0]))
