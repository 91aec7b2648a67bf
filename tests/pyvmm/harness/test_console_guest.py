# SPDX-License-Identifier: Apache-2.0
"""A scripted guest over a serial console whose far end is a function."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from pyvmm.harness.console_guest import ConsoleGuest
from pyvmm.harness.errors import CommandFailed, ConsoleTimeout, GuestExited
from pyvmm.harness.scripted_console import ScriptedConsole

FIFO_BYTES = 16


class FakePattern:
    """The guest's `pattern` program behind a UART that accepts `FIFO_BYTES` at a time."""

    def __init__(self, replies: dict[str, str]) -> None:
        self.console = ScriptedConsole()
        self.exit: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.guest = ConsoleGuest(self.console, asyncio.create_task(self._run()))
        self._replies = replies
        self._line = b""
        self.console.connect(self._receive)

    async def _run(self) -> str:
        return await self.exit

    def _receive(self, data: bytes) -> int:
        self._line += data[:FIFO_BYTES]
        line, newline, self._line = self._line.partition(b"\n")
        if newline:
            self.console.output(f"{self._replies[line.decode()]}\r\n".encode())
        else:
            self._line = line
            asyncio.get_running_loop().call_soon(self.console.send_pending)
        return min(len(data), FIFO_BYTES)


def with_guest(
    scenario: Callable[[FakePattern], Awaitable[None]], replies: dict[str, str] | None = None
) -> None:
    async def main() -> None:
        await scenario(FakePattern(replies or {}))

    asyncio.run(main())


def test_a_command_returns_its_reply() -> None:
    async def scenario(pattern: FakePattern) -> None:
        assert await pattern.guest.command("alloc 64") == "allocated 64 MiB"
        assert await pattern.guest.command("free") == ""

    with_guest(scenario, {"alloc 64": "ok allocated 64 MiB", "free": "ok"})


def test_a_line_longer_than_the_fifo_is_sent_whole() -> None:
    line = "verify " + "7" * 100

    async def scenario(pattern: FakePattern) -> None:
        assert await pattern.guest.command(line) == "verified 0 wrong 0"

    with_guest(scenario, {line: "ok verified 0 wrong 0"})


def test_an_error_reply_fails_the_command() -> None:
    async def scenario(pattern: FakePattern) -> None:
        with pytest.raises(CommandFailed, match="alloc 1: error 1 MiB are allocated already"):
            await pattern.guest.command("alloc 1")

    with_guest(scenario, {"alloc 1": "error 1 MiB are allocated already"})


def test_shell_output_is_unescaped() -> None:
    async def scenario(pattern: FakePattern) -> None:
        assert await pattern.guest.shell("cat f") == "a\\b\nc\n"

    with_guest(scenario, {"shell cat f": r"ok 0 a\\b\nc\n"})


def test_a_shell_command_with_a_status_fails() -> None:
    async def scenario(pattern: FakePattern) -> None:
        with pytest.raises(CommandFailed, match="false: status 1"):
            await pattern.guest.shell("false")

    with_guest(scenario, {"shell false": "ok 1 "})


def test_free_memory_is_read_in_bytes() -> None:
    async def scenario(pattern: FakePattern) -> None:
        assert await pattern.guest.free_bytes() == 300 * 1024

    with_guest(scenario, {"meminfo": "ok total_kib 500 free_kib 300"})


def test_expect_returns_the_group_or_the_whole_match_and_continues_after_it() -> None:
    async def scenario(pattern: FakePattern) -> None:
        pattern.console.output(b"user space up after 1.5 s\r\none two\r\n")
        assert await pattern.guest.wait_for_user_space() == 1.5
        assert await pattern.guest.expect(r"o\w+") == "one"
        with pytest.raises(ConsoleTimeout, match=r"(?s)no 'one' within 0 s; last output:.*two"):
            await pattern.console.expect("one", timeout_s=0)

    with_guest(scenario)


def test_an_exit_ends_every_wait() -> None:
    async def scenario(pattern: FakePattern) -> None:
        pattern.console.output(b"Kernel panic\r\n")
        asyncio.get_running_loop().call_later(0.05, pattern.exit.set_result, "it crashed")
        with pytest.raises(GuestExited, match=r"it crashed; last output:\nKernel panic"):
            await pattern.guest.expect("never printed")
        assert await pattern.guest.wait_for_exit() == "it crashed"

    with_guest(scenario)
