# SPDX-License-Identifier: Apache-2.0
"""The host's side of the guest's console: a terminal, a pipe or a file.

Input: standard input, in raw mode (`raw_mode`) if it is a terminal, is read on the event loop.
`EscapeFilter` removes the keys for pyvmm itself (Ctrl-A and a letter). Bytes that the guest has no
room for are kept here; once `MAX_PENDING_BYTES` are pending, no more is read. At the end of a pipe
or file the guest runs on without input.

Output: `ConsoleWriter` writes it from a thread of its own. When the output can no longer be
written, it is dropped, and `Action.OUTPUT_LOST` reports that once. At the end, `finish` waits for
the reader.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from enum import Enum, auto

from pyvmm.console.writer import ConsoleWriter

ESCAPE = 0x01  # Ctrl-A
HELP_TEXT = (
    b"\r\nCtrl-A x  end pyvmm\r\nCtrl-A h  this help\r\nCtrl-A Ctrl-A  send Ctrl-A to the guest\r\n"
)
MAX_PENDING_BYTES = 1 << 16
_READ_BYTES = 4096
_FINISH_POLL_S = 0.005
_OFFER_BYTES = 4096  # a buffer of Linux's virtio-console driver; more than any UART takes at once


class Action(Enum):
    """Events of the console that pyvmm acts on."""

    QUIT = auto()
    HELP = auto()
    OUTPUT_LOST = auto()


_COMMANDS = {ord("x"): Action.QUIT, ord("h"): Action.HELP, ord("?"): Action.HELP}


class EscapeFilter:
    """Removes escape sequences from the input, also when reads split them.

    Ctrl-A twice sends one Ctrl-A to the guest; Ctrl-A and an unknown letter are dropped.
    """

    def __init__(self) -> None:
        self._escaped = False

    def feed(self, data: bytes) -> tuple[bytes, list[Action]]:
        """Return the bytes for the guest and the actions in `data`, both up to the first QUIT."""
        for_guest = bytearray()
        actions: list[Action] = []
        for byte in data:
            if not self._escaped and byte != ESCAPE:
                for_guest.append(byte)
                continue
            self._escaped = not self._escaped
            if self._escaped:
                continue
            if byte == ESCAPE:
                for_guest.append(byte)
            elif action := _COMMANDS.get(byte):
                actions.append(action)
                if action is Action.QUIT:
                    break
        return bytes(for_guest), actions


class ConsoleIo:
    """Connects standard input, `stdin_fd`, and `writer` with the guest's console, on `loop`.

    `on_input` takes bytes for the guest and returns how many of them it accepted; if not all,
    `send_pending` must be called when there is room again. `on_action` gets QUIT and OUTPUT_LOST.
    Nothing is read before `start`.

    Threads: event loop, both callbacks included.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        stdin_fd: int,
        writer: ConsoleWriter,
        on_input: Callable[[bytes], int],
        on_action: Callable[[Action], None],
    ) -> None:
        self._loop = loop
        self._fd = stdin_fd
        self._on_input = on_input
        self._on_action = on_action
        self._filter = EscapeFilter()
        self._pending = bytearray()
        self._reading = False
        self._ended = False
        self.writer = writer
        writer.lost.add(self._output_lost)
        if writer.error is not None:
            self._output_lost()

    @property
    def output_error(self) -> OSError | None:
        """The reason why output was lost; None if none was."""
        return self.writer.error

    def start(self) -> None:
        """Start to read input for the guest."""
        self._resume()

    def send_pending(self) -> None:
        """Send pending input to the guest, and read more once there is room."""
        while self._pending:
            offer = bytes(self._pending[:_OFFER_BYTES])
            accepted = self._on_input(offer)
            del self._pending[:accepted]
            if accepted < len(offer):
                break
        self._resume()

    async def finish(self, timeout_s: Callable[[], float]) -> bool:
        """Stop reading and wait until the remaining output is written; return False if it is not.

        The wait ends after `timeout_s()` seconds, which may become fewer in the meantime.
        """
        self.close()
        begin = time.monotonic()
        while not self.writer.close(0):
            if time.monotonic() - begin > timeout_s():
                return False
            await asyncio.sleep(_FINISH_POLL_S)
        return True

    def close(self) -> None:
        """Stop reading; output that is left may be lost."""
        self._ended = True
        self._pause()
        self.writer.close(0)

    def _resume(self) -> None:
        """Read again unless the input has ended or too much of it is pending."""
        if self._reading or self._ended or len(self._pending) >= MAX_PENDING_BYTES:
            return
        try:
            self._loop.add_reader(self._fd, self._readable)
            self._reading = True
        except PermissionError:  # epoll(7) supports neither regular files nor /dev/null
            self._reading = True
            self._loop.call_soon(self._read_file)
        except OSError:  # not an open file
            self._ended = True

    def _pause(self) -> None:
        if self._reading:
            self._loop.remove_reader(self._fd)
            self._reading = False

    def _read_file(self) -> None:
        """Read a file, which is always readable; `send_pending` schedules the next read."""
        self._reading = False
        if not self._ended:
            self._readable()

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, _READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:  # the terminal has hung up
            data = b""
        if not data:
            self._ended = True
            self._pause()
            return
        for_guest, actions = self._filter.feed(data)
        self._pending += for_guest
        self.send_pending()
        if len(self._pending) >= MAX_PENDING_BYTES:
            self._pause()
        for action in actions:
            self._act(action)

    def _act(self, action: Action) -> None:
        if action is Action.HELP:
            self.writer.queue.put(HELP_TEXT)
        else:
            self._on_action(action)

    def _output_lost(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._on_action, Action.OUTPUT_LOST)
