# SPDX-License-Identifier: Apache-2.0
"""End the process within a limited time, whatever its threads wait for."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

from pyvmm.blocking.signal_mask import blocked_signals

RELEASE_TIMEOUT_S = 1.0
"""Longest time to restore the terminal and to remove the sockets when the time is over."""


class EndLimit:
    """Calls `release` and ends the process `timeout_s` after `start`, with `status()`.

    `release` restores what the process must not leave behind. It has `RELEASE_TIMEOUT_S`, on a
    thread of its own.

    Threads: any, and handlers of signals; `cancel` after `start` has returned.
    """

    def __init__(
        self, timeout_s: float, release: Callable[[], object], status: Callable[[], int]
    ) -> None:
        self._timeout_s = timeout_s
        self._release = release
        self._status = status
        self._timer: threading.Timer | None = None
        self._begun = threading.Lock()
        """Held by the first `start` and never released, so handlers of signals do not wait."""

    def start(self) -> None:
        """Let the time begin, unless it has begun."""
        if not self._begun.acquire(blocking=False):
            return
        self._timer = threading.Timer(self._timeout_s, self._end_process)
        self._timer.daemon = True
        # The new thread takes no signals, whatever the caller's does.
        with blocked_signals(signal.valid_signals()):
            self._timer.start()

    def cancel(self) -> None:
        """Limit the time no longer."""
        if self._timer is not None:
            self._timer.cancel()

    def _end_process(self) -> None:
        releasing = threading.Thread(target=self._release, name="release", daemon=True)
        releasing.start()
        releasing.join(RELEASE_TIMEOUT_S)
        os._exit(self._status())
