# SPDX-License-Identifier: Apache-2.0
"""Run commands in a guest to their ends and collect their output.

Many may run at once, as many as the machine has ports for; further ones wait for their turn. A
command whose time is up, whose caller is cancelled or whose output is too long is killed: its
process group gets SIGKILL. Its ports are free again when the agent has reported its end, for which
a cancelled caller does not wait.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shlex
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from pyvmm.guest_agent.client import (
    DEFAULT_DIRECTORY,
    DEFAULT_ENVIRONMENT,
    CommandResult,
    GuestAgent,
    GuestCommand,
)
from pyvmm.harness.agent_config import commands_at_once
from pyvmm.harness.completed_command import CompletedCommand, decode_output
from pyvmm.harness.errors import CommandFailed, CommandTimeout, OutputTooLong
from pyvmm.units import MIB, format_size

if TYPE_CHECKING:
    from pyvmm.vm import VirtualMachine

AGENT_TIMEOUT_S = 120.0
"""Longest time until the agent answers; a boot in the lab takes 5 s."""
KILL_TIMEOUT_S = 5.0
"""Longest time to wait for the end of a command that was killed because its time was up."""
MAX_OUTPUT_BYTES = 256 * MIB
"""Longest output, and longest error output, of a command."""


class CommandRunner:
    """Runs commands through `agent`, at most `at_once` at a time.

    Threads: event loop.
    """

    def __init__(self, agent: GuestAgent, at_once: int) -> None:
        self._agent = agent
        self._answered = False
        self._turns = asyncio.Semaphore(at_once)

    async def wait_for_agent(self, timeout_s: float = AGENT_TIMEOUT_S) -> None:
        """Wait until the guest can run commands. Raises `AgentFailed`."""
        if not self._answered:
            await self._agent.connect(timeout_s)
            self._answered = True

    async def run(
        self,
        arguments: Sequence[str],
        *,
        input: bytes | str = b"",
        environment: Mapping[str, str] | None = None,
        directory: str = DEFAULT_DIRECTORY,
        timeout_s: float | None = None,
        check: bool = False,
    ) -> CompletedCommand:
        """Run a command to its end; `GuestSession.run` describes the arguments and errors."""
        if isinstance(arguments, str):
            raise TypeError(f"a command is a list, such as {shlex.split(arguments)}")
        await self.wait_for_agent()
        await self._turns.acquire()
        output, error = _CollectedOutput(), _CollectedOutput()
        try:
            command = self._agent.start(
                arguments,
                output=output,
                error=error,
                environment={**DEFAULT_ENVIRONMENT, **(environment or {})},
                directory=directory,
            )
        except BaseException:
            self._turns.release()
            raise
        output.on_full = error.on_full = lambda: _kill(command)
        ended = self._watch(command)
        command.send_input(_encoded(input))
        command.end_input()
        result = await _end_within(command, ended, timeout_s)
        if result is None:
            text = f"{shlex.join(arguments)}: not ended within {timeout_s:g} s"
            raise CommandTimeout(text, decode_output(output.data), decode_output(error.data))
        if output.error or error.error:
            limit = format_size(MAX_OUTPUT_BYTES)
            raise OutputTooLong(f"{shlex.join(arguments)}: it has written more than {limit}")
        completed = CompletedCommand(
            tuple(arguments),
            result.status,
            result.signal,
            decode_output(output.data),
            decode_output(error.data),
            result.oom_kills,
        )
        if check and completed.status:
            raise CommandFailed(_failure(completed), completed)
        return completed

    def close(self) -> None:
        """End all commands with `AgentFailed`, and disconnect from the agent."""
        self._agent.close()

    def _watch(self, command: GuestCommand) -> asyncio.Task[CommandResult]:
        """Return a task that ends with `command`, and then lets the next one run."""
        ended = asyncio.create_task(command.wait())

        def release(task: asyncio.Task[CommandResult]) -> None:
            self._turns.release()
            if not task.cancelled():
                task.exception()  # nothing may wait for it any more

        ended.add_done_callback(release)
        return ended


def make_runner(vm: VirtualMachine) -> CommandRunner:
    """Return the runner of `vm`, which runs already. Raises `AgentFailed` if it has no port."""
    loop = asyncio.get_running_loop()
    agent = GuestAgent(vm.console_device, vm.machine.lock, loop)
    return CommandRunner(agent, commands_at_once(vm.config))


class _CollectedOutput:
    """Output in memory, `data`, of at most `MAX_OUTPUT_BYTES`; `on_full` is called beyond that."""

    busy = False

    def __init__(self) -> None:
        self.data = bytearray()
        self.error: OSError | None = None
        self.on_full: Callable[[], None] = lambda: None

    def put(self, data: bytes) -> None:
        self.data += data
        if len(self.data) > MAX_OUTPUT_BYTES:
            self.error = OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            self.on_full()


async def _end_within(
    command: GuestCommand, ended: asyncio.Task[CommandResult], timeout_s: float | None
) -> CommandResult | None:
    """Return the end of `command`; None if its time was up, and it was killed."""
    try:
        await asyncio.wait({ended}, timeout=timeout_s)
        if not ended.done():
            _kill(command)
            await asyncio.wait({ended}, timeout=KILL_TIMEOUT_S)
            return None
    except asyncio.CancelledError:
        _kill(command)
        raise
    return await ended


def _kill(command: GuestCommand) -> None:
    command.send_signal(signal.SIGKILL)


def _encoded(data: bytes | str) -> bytes:
    return data.encode(errors="surrogateescape") if isinstance(data, str) else data


def _failure(completed: CompletedCommand) -> str:
    """Return the message about a command whose status is not 0, with the end of its output."""
    text = f"{shlex.join(completed.arguments)}: status {completed.status}"
    if completed.oom_kills:
        text += ", the guest was out of memory"
    output = completed.stderr or completed.stdout
    return f"{text}\n{output[-2000:]}".rstrip()
