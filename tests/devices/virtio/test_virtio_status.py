# SPDX-License-Identifier: Apache-2.0
"""The device status field: every transition, and the features that FEATURES_OK refuses."""

import pytest

from devices.virtio import features
from devices.virtio.status import NEXT, Status, step

A, D, F, OK = Status.ACKNOWLEDGE, Status.DRIVER, Status.FEATURES_OK, Status.DRIVER_OK
RESET, BROKEN, FAILED = Status.RESET, Status.DEVICE_NEEDS_RESET, Status.FAILED
STATES = list(NEXT)


def test_the_driver_reaches_driver_ok_step_by_step() -> None:
    status = RESET
    for bit in (A, D, F, OK):
        after = step(status, status | bit)
        assert after == status | bit
        status = after


def test_acknowledge_and_driver_may_be_set_together() -> None:
    assert step(RESET, A | D) == A | D


@pytest.mark.parametrize("current", STATES)
def test_only_listed_transitions_are_allowed(current: Status) -> None:
    for written in range(1, 256):
        plain = written & ~BROKEN
        after = step(current, written)
        if plain == current:
            assert after == current
        elif plain == current | FAILED:
            assert after == current | FAILED
        elif plain in NEXT[current]:
            assert after == plain
        else:
            assert after is None, f"{written:#x} after {current!r}"


@pytest.mark.parametrize("current", [*STATES, A | D | FAILED, A | D | F | OK | BROKEN])
def test_zero_resets_from_anywhere(current: Status) -> None:
    assert step(current, 0) == RESET


def test_the_driver_can_neither_set_nor_clear_needs_reset() -> None:
    assert step(A | D, A | D | BROKEN) == A | D
    live = A | D | F | OK
    assert step(live | BROKEN, live) == live | BROKEN
    assert step(live | BROKEN, live | FAILED) == live | BROKEN | FAILED


@pytest.mark.parametrize("stopped", [BROKEN, FAILED])
def test_only_a_reset_leaves_failed_or_needs_reset(stopped: Status) -> None:
    assert step(A | D | stopped, A | D | F | stopped) is None
    assert step(A | D | F | stopped, A | D | F | OK) is None


@pytest.mark.parametrize(
    ("accepted", "why"),
    [
        (features.VERSION_1, None),
        (features.TRANSPORT | 1, None),
        (features.TRANSPORT | 2, "not offered"),
        (features.VERSION_1 | 1 << 33, "not offered"),
        (features.EVENT_IDX, "VERSION_1"),
        (0, "VERSION_1"),
    ],
)
def test_feature_sets_are_refused_with_a_reason(accepted: int, why: str | None) -> None:
    refusal = features.refusal(features.TRANSPORT | 1, accepted)
    assert refusal is None if why is None else why in (refusal or "")


def test_features_are_named_in_text() -> None:
    mask = features.VERSION_1 | 1 << 3 | 1 << 41
    assert features.names(mask, {1 << 3: "PAGE_BITMAP"}) == "PAGE_BITMAP|VERSION_1|bit 41"
    assert features.names(0, {}) == "none"
