# SPDX-License-Identifier: Apache-2.0
"""A guest driven over its serial console alone: wait for output, run commands, wait for its exit.

The VMM that runs the guest, pyvmm (`pyvmm.harness.guest_session`) or another, supplies a
`ScriptedConsole` and a task that ends when the guest does. Every wait for the guest ends with that
task, too, so that a script never waits for output of a guest that has exited.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from typing import Any, Generic, TypeVar

from pyvmm.harness.errors import CommandFailed, GuestExited
from pyvmm.harness.scripted_console import ScriptedConsole

POLL_S = 0.02
"""Interval at which the size of a balloon that is being resized is read."""

_T = TypeVar("_T")
_Exit = TypeVar("_Exit")


class ConsoleGuest(Generic[_Exit]):
    """A running guest and the far end of its serial line, `console`.

    `running` ends when the guest does, with its exit result.
    """

    def __init__(self, console: ScriptedConsole, running: asyncio.Task[_Exit]) -> None:
        self.console = console
        self._running = running

    async def wait_for_exit(self) -> _Exit:
        """Wait until the guest exits and return its exit result; raises the error of its VMM."""
        return await self._running

    async def while_running(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Return the result of `work`; raises GuestExited when the guest exits before it."""
        task = asyncio.create_task(work)
        try:
            await asyncio.wait({task, self._running}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                result = await self._running
                raise GuestExited(f"{result}; last output:\n{self.console.text[-600:]}")
            return await task
        finally:
            task.cancel()

    async def expect(self, pattern: str) -> str:
        """Wait for `pattern` on the console; returns its first group, or the whole match."""
        match = await self.while_running(self.console.expect(pattern))
        return match[1] if match.re.groups else match[0]

    async def wait_for_user_space(self) -> float:
        """Wait until the guest reads its console; returns the guest's own uptime in seconds."""
        return float(await self.expect(r"user space up after ([\d.]+) s"))

    async def command(self, line: str) -> str:
        """Run one command of the guest's `pattern` program and return its reply.

        Raises CommandFailed when the program reports an error.
        """
        return await self.while_running(self.console.command(line))

    async def shell(self, command: str) -> str:
        """Run a shell command in the guest and return its output.

        Raises CommandFailed when its status is not 0; 128 + N is death by signal N.
        """
        status, _, escaped = (await self.command(f"shell {command}")).partition(" ")
        output = re.sub(r"\\([\\n])", lambda match: "\n" if match[1] == "n" else "\\", escaped)
        if status != "0":
            raise CommandFailed(f"{command}: status {status}\n{output}")
        return output

    async def free_bytes(self) -> int:
        """Return MemFree as the guest's kernel counts it, in bytes."""
        words = (await self.command("meminfo")).split()
        return int(words[words.index("free_kib") + 1]) * 1024
