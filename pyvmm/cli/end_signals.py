# SPDX-License-Identifier: Apache-2.0
"""Signals that end a VM, and a limit on the time that its end may take.

The event loop ends the VM, as long as it responds. A signal must end the process in any case, so it
does not depend on the loop or the main thread: Python's wake-up descriptor (`signal.set_wakeup_fd`)
leads to a thread of its own, which tells the loop and starts a timer. If the process still runs
after `END_TIMEOUT_S`, for example because a thread hangs in a system call on a dead file system,
the timer restores the terminal, removes the sockets and ends the process.

A signal before or after that must not leave a socket behind either. So `held_end_signals` holds
them in the kernel from before the first socket to after the last one, and `EndSignals` takes them
in between. Only its thread does, all others block them. So when that thread has ended, each later
signal waits until the end of the `with` block, whatever threads are left, then ends the process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyvmm.blocking.end_limit import EndLimit
from pyvmm.blocking.signal_mask import END_SIGNALS, blocked_signals
from pyvmm.blocking.thread_limit import thread_limit_reported
from pyvmm.standard_streams.text import print_message
from pyvmm_native import gil_request

if TYPE_CHECKING:
    from pyvmm.cli.late_loop import LateLoop

END_TIMEOUT_S = 25.0
"""Longest time from a signal, or the end of the VM by another reason, to that of the process."""
EXIT_OVERDUE = 1


def held_end_signals() -> contextlib.AbstractContextManager[None]:
    """Let `END_SIGNALS` wait until the end of the `with` block, but for `EndSignals`."""
    return blocked_signals(END_SIGNALS)


class EndSignals:
    """Calls `on_signal` with the number of each of `END_SIGNALS`, on the event loop `loop`.

    `received` is the number of the last of them; 0 if there was none. `release` restores what the
    process must not leave behind; it may be called on any thread.

    Threads: event loop; `limit` and `received` any.
    """

    def __init__(
        self,
        loop: LateLoop,
        on_signal: Callable[[int], object],
        release: Callable[[], object],
    ) -> None:
        self._loop = loop
        self._on_signal = on_signal
        self._release = release
        self._handlers: dict[int, Callable[[], object]] = {}
        self._former: dict[signal.Signals, Any] = {}
        self._writer = -1
        self._thread: threading.Thread | None = None
        self._blocked: set[int] = set()
        self._limit = EndLimit(END_TIMEOUT_S, self._release_all, self._status)
        self.received = 0

    def start(self) -> None:
        """Catch the signals, those that are held included; on the main thread, at most once.

        Raises `ThreadNotStarted`.
        """
        self._blocked = {*signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)}
        reader, self._writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._writer, False)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for signum in END_SIGNALS:
            self._catch(signum)
        thread = threading.Thread(
            target=self._read, args=(reader,), name="end-signals", daemon=True
        )
        try:
            with thread_limit_reported():
                thread.start()
        except BaseException:
            self._release_wakeup_fd()
            os.close(reader)
            self._restore_handlers()
            raise
        self._thread = thread

    def handle(self, signum: signal.Signals, handler: Callable[[], object]) -> None:
        """Call `handler` for this signal, on the event loop, instead; after `start`.

        asyncio's own `add_signal_handler` cannot be used beside this class: both need the wake-up
        descriptor.
        """
        self._handlers[signum] = handler
        self._catch(signum)

    def _catch(self, signum: signal.Signals) -> None:
        former = signal.signal(signum, self._caught)
        self._former.setdefault(signum, former)
        signal.siginterrupt(signum, False)

    def _caught(self, signum: int, frame: object) -> None:
        """Note a signal that the thread may be too late to read. Threads: event loop."""
        if signum in END_SIGNALS and signum not in self._handlers:
            self.received = signum

    def close(self) -> None:
        """Restore the former handlers; later signals wait if they did before `start`.

        The time for the end of the process stays limited.
        """
        if self._thread is None:
            return
        self._release_wakeup_fd()
        self._thread.join()
        self._thread = None
        self._restore_handlers()

    def _release_wakeup_fd(self) -> None:
        signal.set_wakeup_fd(-1)
        os.close(self._writer)

    def _restore_handlers(self) -> None:
        for signum, handler in self._former.items():
            signal.signal(signum, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*END_SIGNALS} - self._blocked)

    def limit(self) -> None:
        """End the process after `END_TIMEOUT_S`, unless it has ended by then."""
        self._limit.start()

    def _read(self, reader: int) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, END_SIGNALS)
        while numbers := gil_request.read_signals(reader):
            for number in numbers:
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    if (handler := self._handlers.get(number)) is not None:
                        self._loop.call_soon_threadsafe(handler)
                    elif number in END_SIGNALS:
                        self.received = number
                        self.limit()
                        self._loop.call_soon_threadsafe(self._on_signal, number)
        # Python's join() returns before the kernel has ended the thread.
        signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)
        os.close(reader)

    def _status(self) -> int:
        return 128 + self.received if self.received else EXIT_OVERDUE

    def _release_all(self) -> None:
        try:
            self._release()
        finally:
            print_message(f"the VM has not ended within {END_TIMEOUT_S:g} s; the process ends now")
