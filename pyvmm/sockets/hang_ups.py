# SPDX-License-Identifier: Apache-2.0
"""Notice that the peer of a connection has closed it while nothing is read from it.

The end of the input does not tell: a peer that has only closed its sending side still reads. An
event loop can only watch for input, so an epoll(7) instance, which always reports EPOLLHUP and
EPOLLERR, watches the connections for nothing else, and the event loop watches that instance.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable


class HangUpWatcher:
    """Calls back when watched sockets are closed by their peers.

    Threads: event loop, the running one.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._poll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._loop.add_reader(self._poll.fileno(), self._call_back)

    def watch(self, fd: int, on_hang_up: Callable[[], None]) -> None:
        """Call `on_hang_up` once, when the peer of `fd` has closed both directions."""
        self._poll.register(fd, select.EPOLLONESHOT)
        self._callbacks[fd] = on_hang_up

    def unwatch(self, fd: int) -> None:
        """Stop watching `fd`, which is still open."""
        if self._callbacks.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def close(self) -> None:
        """Stop watching all sockets."""
        self._loop.remove_reader(self._poll.fileno())
        self._poll.close()
        self._callbacks.clear()

    def _call_back(self) -> None:
        for fd, _ in self._poll.poll(0):
            if (on_hang_up := self._callbacks.get(fd)) is not None:
                on_hang_up()
