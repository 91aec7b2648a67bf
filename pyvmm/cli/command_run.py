# SPDX-License-Identifier: Apache-2.0
"""Run a command in a guest: its streams are those of this process, its exit status is ours.

The guest's agent starts the command (see `pyvmm.guest_agent`). If both standard input and standard
output are a terminal, the command has one, too, with its window size, and keys go to the command
but for Ctrl-A x; else each stream is passed on by itself, and Ctrl-C sends SIGINT to the command.
The kernel's log is kept apart; its end is printed when the guest fails.

The guest runs until the command has ended and all its output has been written, or it ends itself,
or the time is up. `CommandEnd` says which; pyvmm's own failures have the status 125, as those of
env(1).
"""

from __future__ import annotations

import os
import signal
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

from pyvmm.blocking.event_loop import run_on_new_loop
from pyvmm.cli.asyncio_without_ssl import asyncio
from pyvmm.cli.command_request import CommandOptions
from pyvmm.cli.command_status import CommandEnd
from pyvmm.cli.console.terminal import Action, EscapeFilter
from pyvmm.cli.fetched_files import fetch
from pyvmm.cli.vm_run import VmRun
from pyvmm.errors import UserError
from pyvmm.guest_agent.client import (
    FAILED_STATUS,
    CommandResult,
    GuestAgent,
    GuestCommand,
    signal_name,
)
from pyvmm.guest_agent.errors import AgentFailed, CommandNotStarted
from pyvmm.guest_agent.messages import TerminalSize
from pyvmm.guest_agent.streams import READ_BYTES, DescriptorSink, DescriptorSource, soon_on
from pyvmm.machine.exit_result import ExitReason, ExitResult
from pyvmm.memory.heap import free_unused_heap
from pyvmm.standard_streams.text import print_message
from pyvmm.vm import VirtualMachine

if TYPE_CHECKING:
    from pyvmm.cli.console.kernel_log import KernelLog
    from pyvmm.cli.vm_start import VmStart

AGENT_TIMEOUT_S = 120.0
"""Longest time from the start of the guest to the agent's answer; a boot in the lab takes 5 s."""
TIMEOUT_STATUS = 124
"""Exit status after --timeout, as that of timeout(1)."""
FINAL_OUTPUT_TIMEOUT_S = 1.0
"""Longest time to write the output of a command whose guest has ended."""

ENDS = {
    ExitReason.POWEROFF: "the guest has powered off before the command ended",
    ExitReason.RESET: "the guest has rebooted before the command ended",
    ExitReason.QUIT: "the guest was ended before the command",
    ExitReason.ESCAPE: "the guest was ended before the command",
    ExitReason.SIGNAL: "the guest was ended before the command",
}


def serve_command(start: VmStart, options: CommandOptions, log: KernelLog) -> CommandEnd:
    """Run the command of `options` in the VM that `start` has booted, and end it.

    `log` is the VM's serial console.
    """

    async def serve() -> CommandEnd:
        async with AsyncExitStack() as stack:
            run = _CommandRun(stack, start, options, log)
            vm = VirtualMachine(start.take_machine())
            stack.callback(run.close_vm)
            run.adopt(vm)
            return await run.run(vm)

    return run_on_new_loop(serve)


class _CommandRun(VmRun):
    """The run of one command in a VM of its own."""

    def __init__(
        self, stack: AsyncExitStack, start: VmStart, options: CommandOptions, log: KernelLog
    ) -> None:
        super().__init__(stack, start)
        self._options = options
        self._log = log
        self._has_terminal = os.isatty(0) and os.isatty(1)

    async def run(self, vm: VirtualMachine) -> CommandEnd:
        """Run `vm` and the command to their ends."""
        await self.serve_sockets(vm)
        free_unused_heap()
        agent = GuestAgent(vm.console_device, vm.machine.lock, self._loop)
        running = asyncio.create_task(vm.run())
        work = asyncio.create_task(self._work(agent))
        try:
            await asyncio.wait(
                {running, work},
                timeout=self._options.timeout_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if running.done() and not work.done():
                await vm.ports.drain(lambda: FINAL_OUTPUT_TIMEOUT_S)
                await asyncio.wait({work}, timeout=FINAL_OUTPUT_TIMEOUT_S if not self.caught else 0)
            end = await self._end(running, work)
        finally:
            work.cancel()
            agent.close()
            vm.quit()
            with suppress(asyncio.CancelledError, UserError):
                await work
            await asyncio.wait({running})
        return end

    async def _end(
        self, running: asyncio.Task[ExitResult], work: asyncio.Task[CommandResult]
    ) -> CommandEnd:
        if self.caught:
            return CommandEnd("host-signal", self.exit_status(0), signal=self.caught[0])
        if work.done() and not isinstance(work.exception(), AgentFailed):
            return _command_end(work)
        if running.done():
            result = await running
            self._log.print_tail()
            detail = ENDS.get(result.reason) or result.detail
            return CommandEnd(result.reason.value, FAILED_STATUS, detail)
        if work.done():
            self._log.print_tail()
            return CommandEnd("agent-failed", FAILED_STATUS, str(work.exception()))
        timeout_s = self._options.timeout_s
        return CommandEnd(
            "timeout", TIMEOUT_STATUS, f"the command has not ended within {timeout_s:g} s"
        )

    async def _work(self, agent: GuestAgent) -> CommandResult:
        """Run the command and bring back the files of --get; returns how it has ended."""
        await agent.connect(AGENT_TIMEOUT_S)
        async with AsyncExitStack() as stack:
            command, sinks = self._start_command(agent, stack)
            result = await command.wait()
        for name, sink in zip(("output", "error output"), sinks, strict=True):
            if sink.error is not None and not isinstance(sink.error, BrokenPipeError):
                print_message(f"standard {name} cannot be written: {sink.error.strerror}")
        for path in self._options.get:
            await fetch(agent, path)
        return result

    def _start_command(
        self, agent: GuestAgent, stack: AsyncExitStack
    ) -> tuple[GuestCommand, list[DescriptorSink]]:
        """Start the command, connected to the standard streams until `stack` is left.

        Returns it and the writers of its outputs.
        """
        sinks = []
        for fd in (1, 2):
            sink = DescriptorSink(fd, soon_on(self._loop), lambda: command.advance())
            stack.callback(sink.close)
            sinks.append(sink)
        size = _window_size() if self._has_terminal else None
        variables = self._options.environment
        if size is not None and "TERM" not in variables:
            variables = {"TERM": os.environ.get("TERM", "dumb"), **variables}
        command = agent.start(
            self._options.arguments,
            output=sinks[0],
            error=sinks[1],
            environment=variables,
            directory=self._options.directory,
            terminal=size,
        )
        if size is None:
            self.signals.handle(signal.SIGINT, lambda: command.send_signal(signal.SIGINT))
        else:
            stack.enter_context(self.terminal)
            self.signals.handle(signal.SIGWINCH, lambda: command.resize(_window_size()))
        stack.callback(self._connect_input(command).close)
        return command, sinks

    def _connect_input(self, command: GuestCommand) -> DescriptorSource:
        """Pass standard input to the command as far as it takes it."""
        keys = EscapeFilter() if self._has_terminal else None

        def pass_on(data: bytes) -> None:
            if not data:
                command.end_input()
                return
            actions: list[Action] = []
            if keys is not None:
                data, actions = keys.feed(data)
            command.send_input(data)
            if command.input_room_bytes < READ_BYTES:
                source.pause()
            if Action.QUIT in actions and self.vm is not None:
                self.vm.end(ExitResult(ExitReason.ESCAPE))

        def resume() -> None:
            if command.input_room_bytes >= READ_BYTES:
                source.resume()

        source = DescriptorSource(self._loop, 0, pass_on)
        command.on_input_room = resume
        source.resume()
        return source


def _command_end(work: asyncio.Task[CommandResult]) -> CommandEnd:
    """Return how the command has ended, or why it could not run."""
    error = work.exception()
    if isinstance(error, CommandNotStarted):
        return CommandEnd("not-started", error.status, _with_remedy(error))
    if isinstance(error, UserError):
        return CommandEnd("failed", FAILED_STATUS, _with_remedy(error))
    result = work.result()
    message = ""
    if result.oom_kills:
        message = (
            f"the guest was out of memory and has killed {result.oom_kills} process(es);"
            " give it more with --memory"
        )
    if result.signal is None:
        return CommandEnd("exited", result.status, message, None, result.oom_kills)
    message = message or f"the command was ended by {signal_name(result.signal)}"
    return CommandEnd("signaled", result.status, message, result.signal, result.oom_kills)


def _with_remedy(error: UserError) -> str:
    # Late: saves 14 ms (the errors of every package) without an error.
    from pyvmm.cli.remedies import with_remedy

    return with_remedy(error)


def _window_size() -> TerminalSize:
    size = os.get_terminal_size(1)
    return TerminalSize(size.lines, size.columns)
