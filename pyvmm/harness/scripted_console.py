# SPDX-License-Identifier: Apache-2.0
"""Drive a guest's serial console from a program: send a line, wait for a line.

The demonstration, the tests and the benches talk to guests this way; a person uses
`pyvmm.cli.console.terminal`. Output arrives byte by byte on vCPU threads; the event loop is woken
once for the bytes of one moment and collects them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from pyvmm_native.serial import ByteQueue

PATIENCE_S = 600.0
"""For a guest that touches all of a large RAM where every instruction is emulated."""
_GATHER_S = 0.004
_QUEUE_BYTES = 1 << 16


class ConsoleTimeout(Exception):
    """The guest did not print what was waited for; carries the end of what it did print."""


class ScriptedConsole:
    """The far end of one guest's serial line, used on the event loop that made it.

    `queue` is the machine's console output, which `output` adds to as well (any thread). `connect`
    gives the way in: a function that takes bytes and returns how many of them the UART accepted.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.queue = ByteQueue(self._wake, _QUEUE_BYTES)
        self.output = self.queue.put
        self._text = bytearray()
        self._seen = 0
        self._arrived = asyncio.Event()
        self._unsent = b""
        self._send: Callable[[bytes], int] = lambda data: 0

    def connect(self, send: Callable[[bytes], int]) -> None:
        self._send = send

    @property
    def text(self) -> str:
        """Everything the guest has printed so far."""
        self._collect()
        return self._text.decode("utf-8", "replace")

    def _wake(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.call_later, _GATHER_S, self._arrived.set)

    def _collect(self) -> None:
        self._text += self.queue.take()

    def room(self) -> None:
        """The UART has room again: send what it did not take (on the event loop)."""
        if self._unsent:
            self._unsent = self._unsent[self._send(self._unsent) :]

    def send_line(self, line: str) -> None:
        self._unsent += line.encode() + b"\n"
        self.room()

    async def expect(self, pattern: str, timeout_s: float = PATIENCE_S) -> re.Match[str]:
        """Wait for `pattern` in what was printed since the last match; raises ConsoleTimeout."""
        compiled = re.compile(pattern)
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    self._arrived.clear()
                    self._collect()
                    fresh = self._text[self._seen :].decode("latin-1")
                    if match := compiled.search(fresh):
                        self._seen += match.end()
                        return match
                    await self._arrived.wait()
        except TimeoutError:
            tail = self.text[-600:]
            raise ConsoleTimeout(f"no {pattern!r} from the guest; it last said:\n{tail}") from None

    async def ask(self, line: str, timeout_s: float = PATIENCE_S) -> str:
        """Send a line to the guest's `pattern` program and return its reply after "ok "."""
        self.send_line(line)
        match = await self.expect(r"(?m)^(ok|error) ?([^\r\n]*)\r?\n", timeout_s)
        if match[1] == "error":
            raise ConsoleTimeout(f"the guest answered {line!r} with: {match[0].strip()}")
        return match[2]
