# SPDX-License-Identifier: Apache-2.0
"""Spoilt states of devices, made up by hypothesis; and that `state_program` is not asleep.

Invariant: as `state_program`.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.legacy.rtc import Rtc
from devices.state import Fields, StateError
from tests.fuzz import state_program

RTC = 7


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=48))
def test_no_state_does_harm(program: bytes) -> None:
    state_program.run(program)


@pytest.mark.parametrize("device", range(8))
def test_a_state_that_is_not_spoilt_is_taken(device: int) -> None:
    assert state_program.run(bytes([device]))


def test_a_missing_field_is_refused() -> None:
    assert not state_program.run(bytes([RTC, 0, 0, 0]))


def test_a_change_before_a_refusal_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def restore_state(rtc: Rtc, fields: Fields) -> None:
        rtc._memory = bytearray(128)
        raise StateError("rtc", "too late")

    monkeypatch.setattr(Rtc, "restore_state", restore_state)
    with pytest.raises(AssertionError, match="changed something"):
        state_program.run(bytes([RTC]))


def test_another_error_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rtc, "restore_state", lambda rtc, fields: int("index"))
    with pytest.raises(ValueError, match="invalid literal"):
        state_program.run(bytes([RTC]))
