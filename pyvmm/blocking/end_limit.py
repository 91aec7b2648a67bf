# SPDX-License-Identifier: Apache-2.0
"""End the process within a limited time, whatever its threads wait for."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

from pyvmm.blocking.signal_mask import blocked_signals
from pyvmm.blocking.thread_limit import thread_limit_reported
from pyvmm.errors import ThreadNotStarted

RELEASE_TIMEOUT_S = 1.0
"""Longest time to restore the terminal and to remove the sockets when the time is over."""


class EndLimit:
    """Calls `release` and ends the process `timeout_s` after `start`, with `status()`.

    `release` restores what the process must not leave behind. It has `RELEASE_TIMEOUT_S`, on a
    thread of its own. Where the host lets no thread be started, the kernel ends the process instead
    (SIGALRM), and what is not released by then stays.

    Threads: any, and handlers of signals; `cancel` after `start` has returned.
    """

    def __init__(
        self, timeout_s: float, release: Callable[[], object], status: Callable[[], int]
    ) -> None:
        self._timeout_s = timeout_s
        self._release = release
        self._status = status
        self._timer: threading.Timer | None = None
        self._alarmed = False
        self._begun = threading.Lock()
        """Held by the first `start` and never released, so handlers of signals do not wait."""

    def start(self) -> None:
        """Let the time begin, unless it has begun."""
        if not self._begun.acquire(blocking=False):
            return
        self._timer = threading.Timer(self._timeout_s, self._end_process)
        self._timer.daemon = True
        # The new thread takes no signals, whatever the caller's does.
        try:
            with blocked_signals(signal.valid_signals()), thread_limit_reported():
                self._timer.start()
        except ThreadNotStarted:
            self._alarmed = True
            signal.setitimer(signal.ITIMER_REAL, self._timeout_s)

    def cancel(self) -> None:
        """Limit the time no longer."""
        if self._timer is not None:
            self._timer.cancel()
        if self._alarmed:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _end_process(self) -> None:
        releasing = threading.Thread(target=self._release, name="release", daemon=True)
        try:
            try:
                with thread_limit_reported():
                    releasing.start()
                releasing.join(RELEASE_TIMEOUT_S)
            except ThreadNotStarted:
                signal.setitimer(signal.ITIMER_REAL, RELEASE_TIMEOUT_S)
                self._release()
        finally:
            os._exit(self._status())
