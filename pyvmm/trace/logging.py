# SPDX-License-Identifier: Apache-2.0
"""Device events in Python's `logging`: a guest's violations as warnings, all others at debug level.

Logger `pyvmm.guest`; each event is one line of its name and its fields. A program that has not
imported `logging` has not enabled the debug level: a tracer does not import it before its first
event.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pyvmm_native.events import EventBuffer

if TYPE_CHECKING:
    import logging

    from devices.ports import Tracer

_DEBUG, _WARNING = 10, 30  # of `logging`

WARNINGS = ("bad_payload", "needs_reset", "features_refused")
"""Last parts of the names of events that report an error of the guest or its driver."""


class LogTracer:
    """A `devices.ports.Tracer` that logs; it formats no event whose level is disabled.

    Frequent events are emitted only if the debug level is enabled when the tracer is created.
    """

    native: EventBuffer | None = None
    quiet: Tracer | None = None

    def __init__(self) -> None:
        self.watched = "logging" in sys.modules and _logger().isEnabledFor(_DEBUG)

    def event(self, name: str, **fields: int | str) -> None:
        """Log the event `name`."""
        log_event(name, fields)


def log_event(name: str, fields: Mapping[str, int | str]) -> None:
    """Log the event `name` with its fields, if its level is enabled."""
    level = _WARNING if name.rpartition(".")[2] in WARNINGS else _DEBUG
    logger = _logger()
    if logger.isEnabledFor(level):
        logger.log(level, "%s %s", name, fields_text(fields))


@functools.cache
def _logger() -> logging.Logger:
    # Late: saves 5 ms before the guest's first instruction.
    import logging

    return logging.getLogger("pyvmm.guest")


def fields_text(fields: Mapping[str, int | str]) -> str:
    """Return the fields of an event in words; numbers above 9 are in hexadecimal."""
    return " ".join(
        f"{name}={value:#x}" if isinstance(value, int) and value > 9 else f"{name}={value}"
        for name, value in fields.items()
    )
