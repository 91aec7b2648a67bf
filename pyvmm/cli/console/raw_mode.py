# SPDX-License-Identifier: Apache-2.0
"""Raw mode of the terminal on which a guest's console is shown."""

from __future__ import annotations

import atexit
import contextlib
import os
import termios
import tty
from typing import Any


class Terminal:
    """Raw mode of the terminal at `fd` for the length of a `with` block; ignores other files.

    The former mode is restored however the block or the interpreter ends. Output processing stays
    on, so that pyvmm's messages start at the left margin.
    """

    def __init__(self, fd: int = 0) -> None:
        self._fd = fd
        self._former: list[Any] | None = None

    def __enter__(self) -> Terminal:
        if os.isatty(self._fd):
            self._former = termios.tcgetattr(self._fd)
            atexit.register(self.restore)
            tty.setraw(self._fd, termios.TCSANOW)
            mode = termios.tcgetattr(self._fd)
            mode[tty.OFLAG] = self._former[tty.OFLAG]
            termios.tcsetattr(self._fd, termios.TCSANOW, mode)
        return self

    def __exit__(self, *exc: object) -> None:
        self.restore()
        atexit.unregister(self.restore)

    def restore(self) -> None:
        """Restore the former mode; may be called on any thread, and repeatedly."""
        if self._former is not None:
            with contextlib.suppress(termios.error):  # the terminal itself is gone
                termios.tcsetattr(self._fd, termios.TCSANOW, self._former)
