# SPDX-License-Identifier: Apache-2.0
"""Device events to Python's `logging`: misbehaving guests as warnings, the rest for --verbose."""

from __future__ import annotations

import logging

logger = logging.getLogger("pyvmm.guest")

WARNINGS = ("bad_payload", "needs_reset", "features_refused")
"""Last parts of the names of events that say the guest, or its driver, did something wrong."""


class LogTracer:
    """Satisfies `devices.ports.Tracer`; builds no text for a level that nobody listens to."""

    def event(self, name: str, **fields: int | str) -> None:
        level = logging.WARNING if name.rpartition(".")[2] in WARNINGS else logging.DEBUG
        if logger.isEnabledFor(level):
            text = " ".join(
                f"{key}={value:#x}" if isinstance(value, int) and value > 9 else f"{key}={value}"
                for key, value in fields.items()
            )
            logger.log(level, "%s %s", name, text)
