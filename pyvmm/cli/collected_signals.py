# SPDX-License-Identifier: Apache-2.0
"""Signals that end a command which has changed a guest, and has to undo or explain that first.

An exception in the middle of a request would leave its reply in the socket for the next one, so a
signal is only noted, and the command looks at its next step.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def collected_signals() -> Iterator[list[int]]:
    """Collect the signals that would end this process in the list, for the length of the block.

    One that is ignored, as SIGHUP under nohup, stays ignored.
    """
    caught: list[int] = []
    former = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in former.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: caught.append(number))
    try:
        yield caught
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
