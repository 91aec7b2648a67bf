# SPDX-License-Identifier: Apache-2.0
"""Signals of the process in front of a lab.

They arrive as bytes on a pipe, which the loops of this process poll: while the lab starts they end
it (`pyvmm.lab.start`), later they go to the command (`pyvmm.lab.session`). Whatever this process
does instead of polling, it ends within `END_TIMEOUT_S` of SIGTERM or SIGHUP; QEMU ends with it.

Only the main thread takes signals. Those that were blocked before are again in the end, so that
they wait until nothing is left that must be removed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

from devices.listeners import Listeners
from pyvmm.blocking.end_limit import EndLimit
from pyvmm.standard_streams.text import print_message

ENDING = (signal.SIGTERM, signal.SIGHUP)
TAKEN = (*ENDING, signal.SIGINT, signal.SIGQUIT, signal.SIGWINCH)
"""The signals that the main thread takes; other threads are started with these blocked."""
END_TIMEOUT_S = 25.0
"""Longest time from the first signal of `ENDING` to the end of the process."""


@contextlib.contextmanager
def signal_pipe(releasing: Listeners[[]]) -> Iterator[int]:
    """Yield the descriptor of a pipe on which signals arrive as bytes, instead of at handlers.

    Those that are blocked are no longer. `releasing` is called before the process is ended because
    of `END_TIMEOUT_S`, on any thread; it restores the terminal and removes the sockets.
    """
    received: list[int] = []

    def release() -> None:
        try:
            releasing()
        finally:
            print_message(f"the lab has not ended within {END_TIMEOUT_S:g} s; the process ends now")

    limit = EndLimit(END_TIMEOUT_S, release, lambda: 128 + received[0])

    def take(number: int, frame: object) -> None:
        if number in ENDING:
            received.append(number)
            limit.start()

    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    before = {number: signal.signal(number, take) for number in TAKEN}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    held = signal.pthread_sigmask(signal.SIG_UNBLOCK, TAKEN)
    try:
        yield reader
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, held)
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        limit.cancel()
        os.close(reader)
        os.close(writer)
        sys.stdout.flush()
