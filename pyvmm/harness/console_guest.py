# SPDX-License-Identifier: Apache-2.0
"""A guest whose console a program holds: wait for its lines, have it do things, hear of its end.

Whatever runs the guest, our own machine (`pyvmm.harness.guest_session`) or another, gives a
`ScriptedConsole` and a task that ends when the guest does; waiting for the guest ends with it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from typing import Any, Generic, TypeVar

from pyvmm.harness.scripted_console import ScriptedConsole

POLL_S = 0.02
"""How often the size of a balloon that is on its way is looked at."""

_T = TypeVar("_T")
_Ending = TypeVar("_Ending")


class GuestExited(Exception):
    """The guest ended while something else was expected of it."""


class CommandFailed(Exception):
    """A shell command in the guest ended with another status than 0."""


class ConsoleGuest(Generic[_Ending]):
    """A running guest and the far end of its serial line; `running` returns how it ended."""

    def __init__(self, console: ScriptedConsole, running: asyncio.Task[_Ending]) -> None:
        self.console = console
        self._running = running

    async def finished(self) -> _Ending:
        """Wait for the guest's end; raises what made it impossible to go on."""
        return await self._running

    async def while_running(self, doing: Coroutine[Any, Any, _T]) -> _T:
        """Do something that only makes sense while the guest runs; raises GuestExited."""
        task = asyncio.create_task(doing)
        try:
            await asyncio.wait({task, self._running}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                ending = await self._running
                raise GuestExited(f"{ending}; last lines:\n{self.console.text[-600:]}")
            return await task
        finally:
            task.cancel()

    async def expect(self, pattern: str) -> str:
        """Wait for `pattern` on the console; returns its first group, or all of the match."""
        match = await self.while_running(self.console.expect(pattern))
        return match[1] if match.re.groups else match[0]

    async def user_space(self) -> float:
        """Wait until the guest reads its console; returns the guest's own uptime in seconds."""
        return float(await self.expect(r"user space up after ([\d.]+) s"))

    async def ask(self, line: str) -> str:
        """Have the guest's `pattern` program carry out one command; returns its reply."""
        return await self.while_running(self.console.ask(line))

    async def shell(self, command: str) -> str:
        """Have the guest's `pattern` program run a shell command; returns what it printed.

        Raises CommandFailed when it does not end with status 0; 128 + N is death by signal N.
        """
        status, _, escaped = (await self.ask(f"shell {command}")).partition(" ")
        output = re.sub(r"\\([\\n])", lambda match: "\n" if match[1] == "n" else "\\", escaped)
        if status != "0":
            raise CommandFailed(f"{command}: status {status}\n{output}")
        return output

    async def free_bytes(self) -> int:
        """MemFree as the guest's kernel counts it, by way of `pattern`."""
        words = (await self.ask("meminfo")).split()
        return int(words[words.index("free_kib") + 1]) * 1024
