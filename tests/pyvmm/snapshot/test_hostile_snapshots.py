# SPDX-License-Identifier: Apache-2.0
"""Any bytes as a snapshot, as in `tests.fuzz.snapshot_program`; and that it lets good ones pass."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import snapshot_program


@given(st.binary(max_size=600))
def test_nothing_but_the_errors_of_the_policy(data: bytes) -> None:
    snapshot_program.run(data)


@given(st.binary(max_size=200))
def test_records_beside_the_good_ones(data: bytes) -> None:
    snapshot_program.run(b"\x41\x03" + data)


@pytest.mark.parametrize("how", [0x40, 0x41, 0x42, 0x43])
@pytest.mark.parametrize("pages", range(8))
def test_good_ones_pass(how: int, pages: int) -> None:
    assert snapshot_program.run(bytes([how, pages]))
    assert not snapshot_program.run(bytes([how, pages, 2, 0]))
