# SPDX-License-Identifier: Apache-2.0
"""The screen of `pyvmm top`: a table that is drawn over the one before, without flicker.

Each frame is one write that begins at the top left and clears only what is left of the frame
before: the rest of each line and the lines below. It is on the terminal's alternate screen, so what
was there before is back afterwards. A thread of its own queries the guests, so that keys work while
one does not answer.
"""

from __future__ import annotations

import os
import select
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pyvmm.blocking.thread_limit import thread_limit_reported
from pyvmm.cli.collected_signals import collected_signals
from pyvmm.cli.guest_rates import SORT_KEYS, GuestRates, rate_lines, rates_between
from pyvmm.cli.guest_states import GuestState, query_states
from pyvmm.errors import UserError

_BEGIN, _END = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
"""Enter the alternate screen and hide the cursor; the reverse (xterm's control sequences)."""
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
_POLL_S = 0.2
"""Longest time until a signal is noticed."""
FIRST_INTERVAL_S = 0.5
"""Time to the first rates, which need two queries, if the interval is longer."""


def show_until_key(interval_s: float) -> int:
    """Show the guests until the key q or a signal; returns the exit status. Raises `UserError`."""
    sampler = _Sampler(interval_s)
    with thread_limit_reported():
        sampler.start()
    order = 0
    with collected_signals() as signals, _screen():
        while not signals:
            ready = select.select([0, sampler.updated_fd], [], [], _POLL_S)[0]
            if 0 in ready:
                keys = _read_keys()
                if not keys or "q" in keys:
                    return 0
                order = (order + keys.count("s")) % len(SORT_KEYS)
                if " " in keys:
                    sampler.update_now.set()
            if sampler.updated_fd in ready:
                os.eventfd_read(sampler.updated_fd)
            if sampler.error is not None:
                raise sampler.error
            if ready:
                _draw(sampler.guests, list(SORT_KEYS)[order])
    return 128 + signals[0]


class _Sampler(threading.Thread):
    """Queries the guests every `interval_s` seconds; `updated_fd` is readable after each query."""

    def __init__(self, interval_s: float) -> None:
        super().__init__(name="guest-sampler", daemon=True)
        self._interval_s = interval_s
        self.updated_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self.update_now = threading.Event()
        self.guests: list[GuestRates] | None = None
        self.error: UserError | None = None

    def run(self) -> None:
        before: list[GuestState] = []
        wait_s = min(FIRST_INTERVAL_S, self._interval_s)
        while self.error is None:
            try:
                now = query_states()
                self.guests = rates_between(before, now)
                before = now
            except UserError as error:
                self.error = error
            os.eventfd_write(self.updated_fd, 1)
            self.update_now.wait(wait_s)
            self.update_now.clear()
            wait_s = self._interval_s


@contextmanager
def _screen() -> Iterator[None]:
    """Read single keys, and draw on the alternate screen, while the block runs."""
    former = termios.tcgetattr(0)
    try:
        tty.setcbreak(0, termios.TCSANOW)
        _write(_BEGIN)
        yield
    finally:
        _write(_END)
        termios.tcsetattr(0, termios.TCSANOW, former)


def _read_keys() -> str:
    """Return the keys that were pressed; empty if the terminal is gone."""
    try:
        return os.read(0, 64).decode(errors="replace")
    except OSError:
        return ""


def _draw(guests: Sequence[GuestRates] | None, order: str) -> None:
    if guests is None:
        return
    size = os.get_terminal_size(1)
    clock = time.strftime("%H:%M:%S")
    lines = [f"{clock}  {len(guests)} running, by {order}    q: quit, s: sort, space: update", ""]
    lines += rate_lines(guests, order) if guests else ["no guest is running"]
    shown = [line[: size.columns] for line in lines[: size.lines]]
    _write(_HOME + "\r\n".join(line + _CLEAR_LINE for line in shown) + _CLEAR_BELOW)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
