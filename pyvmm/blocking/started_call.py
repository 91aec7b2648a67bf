# SPDX-License-Identifier: Apache-2.0
"""Make a call in a thread of its own, while the caller does something else.

It pays for calls that wait in the kernel, or work without the GIL, while there is Python code to
run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from pyvmm.blocking.signal_mask import END_SIGNALS, blocked_signals
from pyvmm.blocking.thread_limit import thread_limit_reported

_T = TypeVar("_T")


class StartedCall(Generic[_T]):
    """A call of `work`, which has begun in a thread called `name`.

    The thread leaves `END_SIGNALS` to the others, which may hold them, and the process may end
    before it. Raises `ThreadNotStarted`.
    """

    def __init__(self, name: str, work: Callable[[], _T]) -> None:
        self._work = work
        self._results: list[_T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        with blocked_signals(END_SIGNALS), thread_limit_reported():
            self._thread.start()

    def _run(self) -> None:
        try:
            self._results.append(self._work())
        except BaseException as error:
            self._error = error

    def wait(self) -> None:
        """Wait until the call has ended, in either way."""
        self._thread.join()

    def result(self) -> _T:
        """Wait until the call has ended; return its result, or raise its exception."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._results[0]
