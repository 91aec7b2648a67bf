# SPDX-License-Identifier: Apache-2.0
"""Run commands in a guest through its agent.

    agent = GuestAgent(console, lock, loop)
    await agent.connect(timeout_s=60)
    output = MemorySink()
    command = agent.start(["free", "-m"], output=output, error=MemorySink())
    command.end_input()
    result = await command.wait()

`GuestAgent` is connected to the agent's control port and owns the ports of the commands. Each
command uses three of them; they are plugged in when no others are free, and used again later. A
command has ended when the agent says so, as much output has arrived as the agent has written, and
the guest has closed the command's ports.

Threads: everything here is called on the event loop.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.guest_agent import messages
from pyvmm.guest_agent.errors import (
    AgentFailed,
    CommandNotStarted,
    CommandUnusable,
    OutputIncomplete,
    WorkingDirectoryUnusable,
)
from pyvmm.guest_agent.messages import (
    CONTROL_PORT,
    STREAMS,
    Ended,
    EndKind,
    HelloReply,
    MessageReader,
    RunRequest,
    TerminalSize,
)
from pyvmm.guest_agent.streams import OutputSink, PortStream, soon_on

if TYPE_CHECKING:
    from devices.console.device import ConsoleDevice
    from devices.console.port import ConsolePort
    from pyvmm.machine.event_loop import EventLoop

STREAM_PORT = "pyvmm.{}"
"""Name of a port for a stream of a command."""
DEFAULT_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
DEFAULT_DIRECTORY = "/root"
OUTPUT_TIMEOUT_S = 10.0
"""Longest time without any output that a command's last output may take to arrive."""
NOT_FOUND_STATUS, NOT_EXECUTABLE_STATUS, FAILED_STATUS = 127, 126, 125
"""Exit statuses of env(1)."""


def initial_ports() -> tuple[str, ...]:
    """Return the names of the ports that a guest needs for one command."""
    return (CONTROL_PORT, *(STREAM_PORT.format(number) for number in range(STREAMS)))


class CommandResult(NamedTuple):
    """The end of a command: an exit `status`, or the signal that ended it."""

    status: int
    """Exit status; 128 + N when signal N ended the command, as in a shell."""
    signal: int | None
    oom_kills: int
    """Processes that the guest's OOM killer ended while the command ran."""


class GuestCommand:
    """A command in the guest. Input is sent with `send_input`, and ended with `end_input`.

    `on_input_room` is called when more input can be sent: `input_room_bytes` says how much.
    """

    def __init__(
        self,
        agent: GuestAgent,
        number: int,
        program: str,
        streams: Sequence[PortStream],
        sinks: Mapping[int, OutputSink],
    ) -> None:
        self._agent = agent
        self._number = number
        self._program = program
        self._streams = streams
        self._sinks = sinks
        self._ended: Ended | None = None
        self._finished: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self._deadline: asyncio.TimerHandle | None = None
        self.on_input_room: Callable[[], None] = lambda: None

    async def wait(self) -> CommandResult:
        """Wait for the end of the command.

        Raises `CommandNotStarted`, `OutputIncomplete`, and `AgentFailed`.
        """
        ended = await asyncio.shield(self._finished)
        if ended.kind is EndKind.SIGNALED:
            return CommandResult(128 + ended.value, ended.value, ended.oom_kills)
        return CommandResult(ended.value, None, ended.oom_kills)

    @property
    def input_room_bytes(self) -> int:
        """The number of bytes that `send_input` takes now."""
        return self._streams[0].room_bytes

    def send_input(self, data: bytes) -> None:
        """Send `data` to the command's standard input."""
        self._streams[0].send(data)

    def end_input(self) -> None:
        """Let the command see the end of its input after what was sent; a terminal has no end."""
        self._agent.send(messages.input_end(self._number, self._streams[0].sent_bytes))

    def send_signal(self, signum: int) -> None:
        """Send a signal to the command's process group."""
        self._agent.send(messages.send_signal(self._number, signum))

    def resize(self, size: TerminalSize) -> None:
        """Set the size of the command's terminal."""
        self._agent.send(messages.resize(self._number, size))

    def advance(self) -> None:
        """Move data of all streams, and finish when there is none left after the end."""
        stream = self._streams[0]
        before = stream.room_bytes
        stream.advance()
        if stream.room_bytes > before:
            self.on_input_room()
        for index, sink in self._sinks.items():
            self._move_output(self._streams[index], sink)
        if self._ended is not None and not self._finished.done():
            self._finish(self._ended)

    def end(self, ended: Ended) -> None:
        """Note the agent's report that the command has ended."""
        self._ended = ended
        self.advance()

    def fail(self, error: Exception) -> None:
        """End with `error`: no report will come."""
        self._close()
        if not self._finished.done():
            self._finished.set_exception(error)

    def _move_output(self, stream: PortStream, sink: OutputSink) -> None:
        if sink.error is not None:
            stream.close()  # the command gets SIGPIPE when it writes again
        while stream.has_output and not sink.busy and sink.error is None:
            sink.put(stream.take())
            self._restart_deadline()

    def _finish(self, ended: Ended) -> None:
        """End the command if all its output has arrived and its ports are closed."""
        if self._deadline is None:
            self._restart_deadline()
        for index, stream in enumerate(self._streams):
            sink = self._sinks.get(index)
            if stream.guest_open or (sink and sink.busy):
                return
            if sink is None or sink.error is not None:
                continue  # what has arrived since the error is not passed on
            if stream.has_output or stream.received_bytes < self._written(ended, index):
                return
        self._close()
        error = _start_error(ended, self._program)
        if error is None:
            self._finished.set_result(ended)
        else:
            self._finished.set_exception(error)

    def _written(self, ended: Ended, index: int) -> int:
        """Return the bytes that the agent has written to stream `index`."""
        terminal = len(self._streams) == 1
        return ended.written[0] if terminal else (0, *ended.written)[index]

    def _restart_deadline(self) -> None:
        if self._ended is None:
            return
        if self._deadline is not None:
            self._deadline.cancel()
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(OUTPUT_TIMEOUT_S, self._give_up)

    def _give_up(self) -> None:
        if any(sink.busy for sink in self._sinks.values()):
            self._restart_deadline()  # our own reader is slow
        else:
            self.fail(OutputIncomplete("the guest reported more output than has arrived"))

    def _close(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        for stream in self._streams:
            stream.close()
        self._agent.forget(self._number)


class GuestAgent:
    """The agent of a guest with the virtio-console device `console`.

    `lock` is the device lock. Raises `AgentFailed` for a console without the agent's port.
    """

    def __init__(self, console: ConsoleDevice, lock: threading.Lock, loop: EventLoop) -> None:
        self._console = console
        self._lock = lock
        self._soon = soon_on(loop)
        self._reader = MessageReader()
        self._commands: dict[int, GuestCommand] = {}
        self._next = secrets.randbelow(1 << 16)  # not those of an earlier VMM of this guest
        self._hello = secrets.randbits(63)
        self._welcome = asyncio.Event()
        self._failed: AgentFailed | None = None
        port = console.ports.get(CONTROL_PORT)
        if port is None:
            raise AgentFailed("the guest has no port for an agent")
        self._control = PortStream(port, lock, self._soon, self._control_changed)

    async def connect(self, timeout_s: float) -> None:
        """Wait until the agent answers. Raises `AgentFailed`."""
        # The device passes it on when the agent has opened the port.
        self.send(messages.hello(self._hello))
        try:
            await asyncio.wait_for(self._welcome.wait(), timeout_s)
        except TimeoutError:
            raise AgentFailed(f"no agent has answered in the guest for {timeout_s:g} s") from None
        if self._failed is not None:
            raise self._failed

    def start(
        self,
        arguments: Sequence[str],
        *,
        output: OutputSink,
        error: OutputSink,
        environment: Mapping[str, str] = DEFAULT_ENVIRONMENT,
        directory: str = DEFAULT_DIRECTORY,
        terminal: TerminalSize | None = None,
    ) -> GuestCommand:
        """Start a command and return it; its failure to start is raised by `GuestCommand.wait`.

        With a `terminal` all output goes to `output`. Raises `CommandUnusable`, and `AgentFailed`
        if no port is left.
        """
        number = self._free_number()
        changed = self._advance(number)
        streams: list[PortStream] = []
        for _ in range(1 if terminal else STREAMS):
            streams.append(PortStream(self._free_port(), self._lock, self._soon, changed))
        first = streams[0].port.number
        others = [stream.port.number for stream in streams[1:]] or [first, first]
        ports = (first, others[0], others[1])
        sinks = {0: output} if terminal else {1: output, 2: error}
        try:
            request = RunRequest(arguments, environment, directory, ports, terminal)
            message = messages.run(number, request)
        except CommandUnusable:
            for stream in streams:
                stream.close()
            raise
        command = GuestCommand(self, number, arguments[0], streams, sinks)
        self._commands[number] = command
        self.send(message)
        return command

    def send(self, message: bytes) -> None:
        """Send a message to the agent."""
        self._control.send(message)

    def forget(self, number: int) -> None:
        """Forget command `number`: it has ended."""
        self._commands.pop(number, None)

    def close(self) -> None:
        """End all commands with `AgentFailed`, and disconnect."""
        self._fail(AgentFailed("the guest has ended"))
        self._control.close()

    def _free_number(self) -> int:
        while self._next in self._commands:
            self._next = (self._next + 1) & 0xFFFF
        self._next, number = (self._next + 1) & 0xFFFF, self._next
        return number

    def _free_port(self) -> ConsolePort:
        index = 0
        with self._lock:
            ports = self._console.ports
            while (port := ports.get(STREAM_PORT.format(index))) is not None:
                if port.host is None and not port.guest_open:
                    return port
                index += 1
            try:
                return self._console.add_port(STREAM_PORT.format(index))
            except ValueError:
                raise AgentFailed("as many commands as possible run in the guest") from None

    def _advance(self, number: int) -> Callable[[], None]:
        """Return what is called when a stream of command `number` has changed."""

        def advance() -> None:
            if command := self._commands.get(number):
                command.advance()

        return advance

    def _control_changed(self) -> None:
        self._control.advance()
        try:
            for message in self._reader.feed(self._control.take()):
                self._receive(message)
        except AgentFailed as error:
            self._fail(error)

    def _receive(self, message: HelloReply | Ended) -> None:
        if isinstance(message, Ended):
            if command := self._commands.get(message.number):
                command.end(message)
        elif message.version != messages.VERSION:
            raise AgentFailed(
                f"the guest agent has version {message.version}, not {messages.VERSION}"
            )
        elif message.value == self._hello:
            self._welcome.set()

    def _fail(self, error: AgentFailed) -> None:
        self._failed = error
        self._welcome.set()
        for command in list(self._commands.values()):
            command.fail(error)


def _start_error(ended: Ended, program: str) -> CommandNotStarted | None:
    """Return the reason why the command `program` did not start; None if it did."""
    if ended.kind in (EndKind.EXITED, EndKind.SIGNALED):
        return None
    reason = os.strerror(ended.value)
    if ended.kind is EndKind.NOT_STARTED:
        status = NOT_FOUND_STATUS if ended.value == errno.ENOENT else NOT_EXECUTABLE_STATUS
        return CommandNotStarted(f"the guest cannot execute {program!r}: {reason}", status)
    if ended.kind is EndKind.NO_DIRECTORY:
        return WorkingDirectoryUnusable(
            f"the guest cannot enter the working directory: {reason}", FAILED_STATUS
        )
    return CommandNotStarted(f"the guest agent cannot start {program!r}: {reason}", FAILED_STATUS)


def signal_name(signum: int) -> str:
    """Return the name of a signal, such as "SIGKILL"."""
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"
