# SPDX-License-Identifier: Apache-2.0
"""A guest driven by a program: its machine, its console, its balloon.

    async with guest_session(config) as guest:
        await guest.user_space()
        await guest.ask("alloc 64")
        moved = await guest.move_balloon(pages)
        outcome = await guest.finished()

Waiting for the console or the balloon ends as soon as the machine does. The demonstration, the
tests and the benches are such programs.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from pyvmm.config import MachineConfig
from pyvmm.machine import PAGE_BYTES, Machine
from pyvmm.outcome import Outcome
from pyvmm.scripted_console import ScriptedConsole
from pyvmm.tracing import LogTracer

POLL_S = 0.02
BALLOON_TIMEOUT_S = 600.0

_T = TypeVar("_T")


class GuestEnded(Exception):
    """The guest ended while something else was expected of it."""


class CommandFailed(Exception):
    """A shell command in the guest ended with another status than 0."""


@dataclass(frozen=True)
class Transfer:
    """What moving the balloon took, from the target to the driver's last word on it."""

    seconds: float
    pages: int
    requests: int


class GuestSession:
    """One running machine and the far end of its serial line."""

    def __init__(self, machine: Machine, console: ScriptedConsole) -> None:
        self.machine = machine
        self.console = console
        self._running = asyncio.create_task(machine.run())

    async def finished(self) -> Outcome:
        """Wait for the guest's end; raises what a device model raised."""
        return await self._running

    async def while_running(self, doing: Coroutine[Any, Any, _T]) -> _T:
        """Do something that only makes sense while the guest runs; raises GuestEnded."""
        task = asyncio.create_task(doing)
        try:
            await asyncio.wait({task, self._running}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                outcome = await self._running
                raise GuestEnded(
                    f"{outcome.ending.value} {outcome.detail}; last lines:\n"
                    + self.console.text[-600:]
                )
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

    async def move_balloon(self, target_pages: int) -> Transfer:
        """Set the balloon's target, in 4 KiB pages, and wait until the driver reports it."""
        before = self._traffic()
        begin = time.monotonic()
        self.machine.set_balloon_target(self.machine.ram_bytes - target_pages * PAGE_BYTES)
        await self.while_running(self._reach(target_pages))
        seconds = time.monotonic() - begin
        pages, requests = (new - old for new, old in zip(self._traffic(), before, strict=True))
        return Transfer(seconds, pages, requests)

    async def _reach(self, target_pages: int) -> None:
        async with asyncio.timeout(BALLOON_TIMEOUT_S):
            while self.machine.balloon.actual != target_pages:
                await asyncio.sleep(POLL_S)

    def _traffic(self) -> tuple[int, int]:
        counters = self.machine.balloon.counters
        inflate, deflate = counters.inflate, counters.deflate
        return inflate.pages + deflate.pages, inflate.requests + deflate.requests

    async def close(self) -> None:
        self.machine.quit()
        await asyncio.wait({self._running})
        self.machine.close()


@asynccontextmanager
async def guest_session(config: MachineConfig) -> AsyncIterator[GuestSession]:
    """Make and start the machine of `config`; it is ended and closed with the block."""
    console = ScriptedConsole()
    machine = Machine(
        config,
        console_output=console.output,
        tracer=LogTracer(),
        on_console_room=console.room,
    )
    console.connect(machine.console_input)
    session = GuestSession(machine, console)
    try:
        yield session
    finally:
        await session.close()
