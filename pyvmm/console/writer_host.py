# SPDX-License-Identifier: Apache-2.0
"""A `ConsoleWriter` as the host of a port: for a terminal, a pipe or a file.

The guest's output is accepted while the writer has fewer than `MAX_UNWRITTEN_BYTES` to write; then
the guest waits until the writer's thread has taken them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from pyvmm.console.writer import MAX_UNWRITTEN_BYTES, ConsoleWriter

if TYPE_CHECKING:
    from pyvmm.console.ports import LockedPort
    from pyvmm.machine.event_loop import EventLoop
    from pyvmm_native.chain_reader import ChainReader


class WriterHost:
    """Connects `port` with `writer`; `more_input` is called when the guest may take more.

    Once the writer's output is lost, further output is discarded. Satisfies `PortHost`.

    Threads: created on the event loop, where `more_input` is called; the methods of `PortHost` any
    that holds the device lock.
    """

    def __init__(
        self,
        loop: EventLoop,
        port: LockedPort,
        writer: ConsoleWriter,
        more_input: Callable[[], None] = lambda: None,
    ) -> None:
        self._loop = loop
        self._port = port
        self._writer = writer
        self._more_input = more_input
        self._waiting = False
        writer.room_available.add(self._writer_has_room)
        port.connect(self)

    def write(self, output: ChainReader) -> int:
        """As `PortHost.write`."""
        if self._writer.error is not None:
            return len(output)
        self._waiting = True  # first: the writer may make room at any moment
        accepted = output.read(max(0, MAX_UNWRITTEN_BYTES - len(self._writer.queue)))
        self._writer.queue.put(accepted)
        self._waiting = len(accepted) < len(output)
        return len(accepted)

    def room_available(self) -> None:
        """As `PortHost.room_available`."""
        self._soon(self._more_input)

    def guest_open_changed(self, is_open: bool) -> None:
        """As `PortHost.guest_open_changed`."""

    def unplugged(self) -> None:
        """As `PortHost.unplugged`."""

    def _writer_has_room(self) -> None:
        if self._waiting:
            self._soon(self._port.resume)

    def _soon(self, callback: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the VM
            self._loop.call_soon_threadsafe(callback)
