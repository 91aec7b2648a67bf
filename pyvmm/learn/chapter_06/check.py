# SPDX-License-Identifier: Apache-2.0
"""Check of chapter 6: an interrupt is sent if, and only if, the index passes `used_event`.

The expected decision is found by looking at each buffer that was returned. Every sequence is one
that a driver and a device can produce; most of them cross 65535.
"""

from __future__ import annotations

import random
from typing import Any

from pyvmm.learn.checking import CheckFailed, expect

ROUNDS = 3000
WRAP = 1 << 16


def check(exercise: Any) -> None:
    """Check `UsedNotifications` of the module `exercise`."""
    _check_sequence(exercise, [(1, 0), (1, 1), (1, 2)], "one buffer at a time")
    _check_sequence(exercise, [(4, 0), (4, 5), (4, 11)], "four buffers at a time")
    _check_sequence(exercise, [(3, 0), (1, 0), (5, 0), (1, 9)], "a driver that polls for a while")
    _check_sequence(exercise, [(2, 9), (2, 9), (5, 9), (3, 9), (1, 9)], "a driver that waits")
    to_the_end = [(29, index) for index in range(0, WRAP - 29, 29)]
    for used_event in (WRAP - 3, 0, 3):
        crossing = (40, used_event)
        _check_sequence(exercise, [*to_the_end, crossing], "up to 40 buffers at a time")
    _check_random(exercise)


def _check_sequence(exercise: Any, steps: list[tuple[int, int]], name: str) -> None:
    """Check decisions for `steps`, each (buffers returned, used_event), from index 0."""
    notifications = exercise.UsedNotifications()
    index = 0
    for buffers, used_event in steps:
        _check_decision(notifications, index, buffers, used_event, name)
        index += buffers


def _check_random(exercise: Any) -> None:
    """Walk through more indices than there are numbers, with a driver that waits or polls."""
    generator = random.Random(6)
    notifications = exercise.UsedNotifications()
    index = 0
    for _ in range(ROUNDS):
        buffers = generator.randrange(0, 64)
        used_event = index + generator.randrange(-64, 80)
        _check_decision(notifications, index, buffers, used_event % WRAP, "many buffers")
        index = (index + buffers) % WRAP


def _check_decision(
    notifications: Any, before: int, buffers: int, used_event: int, name: str
) -> None:
    after = (before + buffers) % WRAP
    expected = used_event in {(before + i) % WRAP for i in range(buffers)}
    decided = notifications.should_interrupt(after, used_event)
    if decided == expected:
        return
    wrap = (
        ' The index has passed 65535 and begun at 0 again, so "greater" means nothing here;'
        " differences modulo 2^16 do."
        if after < before
        else ""
    )
    returned = f"With {name}: the used index went from {before} to {after}, so " + (
        f"buffers {before} to {(after - 1) % WRAP} were returned"
        if buffers
        else "no buffer was returned"
    )
    if expected:
        raise CheckFailed(
            f"{returned}, and used_event is {used_event}. The driver waits for one of them, and no"
            f" interrupt was sent: it sleeps although its buffer is there.{wrap} (VIRTIO 1.2,"
            " 2.7.7)"
        )
    expect(
        False,
        f"{returned}, and used_event is {used_event}. That is none of them, and an interrupt was"
        " sent: the driver has passed that index before, or does not need to know yet."
        f"{wrap} (VIRTIO 1.2, 2.7.7)",
    )
