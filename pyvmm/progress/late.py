# SPDX-License-Identifier: Apache-2.0
"""Progress of work that is mostly quick: nothing is shown until it has taken two seconds."""

from __future__ import annotations

import time
from contextlib import ExitStack

from pyvmm.progress.reporter import Progress, show_progress

QUIET_S = 2.0
_INTERVAL_S = 0.1


class LateProgress:
    """One stage, `text`, of `total` steps; a context manager that ends it."""

    def __init__(self, text: str, total: int) -> None:
        self._stage = (text, total)
        self._shown: Progress | None = None
        self._stack = ExitStack()
        self._steps = 0
        self._due = time.monotonic() + QUIET_S

    def __enter__(self) -> LateProgress:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def advance(self, steps: int = 1) -> None:
        """Report that `steps` more are done; cheap enough to be called for each event."""
        self._steps += steps
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + _INTERVAL_S
        if self._shown is None:
            self._shown = self._stack.enter_context(show_progress())
            self._shown.stage(*self._stage)
        self._shown.advance(self._steps)
        self._steps = 0
