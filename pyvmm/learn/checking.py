# SPDX-License-Identifier: Apache-2.0
"""The exception by which a check tells a student what is not right yet.

    def check(exercise: Any) -> None:
        driver = exercise.Driver(...)
        expect(driver.features == 1, "The driver has accepted ... (VIRTIO 1.2, 2.2).")

A message consists of whole sentences: it says what was observed, what was expected, and the clause
that says so. It does not say which line to change.
"""

from __future__ import annotations


class CheckFailed(Exception):
    """The exercise is not solved; the message tells the student what was observed."""


def expect(condition: bool, message: str) -> None:
    """Raise CheckFailed with `message` unless `condition`."""
    if not condition:
        raise CheckFailed(message)
