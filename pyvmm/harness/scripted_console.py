# SPDX-License-Identifier: Apache-2.0
"""Drive a guest's serial console from a script: send a line, wait for output.

This is the counterpart of `pyvmm.cli.console.terminal` for scripts. Output arrives byte by byte on
vCPU threads; they wake the event loop at most once every `_GATHER_S` seconds, and it collects the
output.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from pyvmm.harness.errors import CommandFailed, ConsoleTimeout
from pyvmm_native.serial import ByteQueue

DEFAULT_TIMEOUT_S = 600.0
"""Enough for an emulated guest to touch all of a large RAM."""
_GATHER_S = 0.004
_QUEUE_BYTES = 1 << 16


class ScriptedConsole:
    """The far end of one guest's serial line.

    `queue` and `output`, its `put`, receive the guest's output. `connect` takes the function that
    sends input: it is given bytes and returns how many the UART accepted.

    Threads: event loop; `queue` and `output` any.
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
        """Send input with `send` from now on."""
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

    def send_pending(self) -> None:
        """Send the input that the UART had no room for."""
        if self._unsent:
            self._unsent = self._unsent[self._send(self._unsent) :]

    def send_line(self, line: str) -> None:
        """Send `line` and a newline; input that the UART has no room for is sent later."""
        self._unsent += line.encode() + b"\n"
        self.send_pending()

    async def expect(self, pattern: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> re.Match[str]:
        """Wait for `pattern` in the output since the last match; raises ConsoleTimeout."""
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
            raise ConsoleTimeout(
                f"no {pattern!r} within {timeout_s:g} s; last output:\n{tail}"
            ) from None

    async def command(self, line: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> str:
        """Run one command of the guest's `pattern` program and return its reply after "ok "."""
        self.send_line(line)
        match = await self.expect(r"(?m)^(ok|error) ?([^\r\n]*)\r?\n", timeout_s)
        if match[1] == "error":
            raise CommandFailed(f"{line}: {match[0].strip()}")
        return match[2]
