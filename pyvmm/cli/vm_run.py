# SPDX-License-Identifier: Apache-2.0
"""The base of all runs of a VM: signals that end it, control sockets, and ports.

The sockets are bound first, so that an unusable path is reported before anything starts, and served
once the VM exists. Most guests never get a client at the socket by which they are announced (see
`pyvmm.runtime_directory`), so the server of that socket is imported and started when the first one
connects. `terminal_run` connects the VM's console with a terminal, `command_run` runs a command in
the guest.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from pyvmm.cli.asyncio_without_ssl import asyncio
from pyvmm.cli.console.terminal import Terminal
from pyvmm.cli.end_signals import EndSignals
from pyvmm.machine.exit_result import ExitReason, ExitResult
from pyvmm.trace.tracer import EventTracer

if TYPE_CHECKING:
    from pyvmm.cli.console.ports import PortHosts, PortOption
    from pyvmm.cli.record_options import RecordOptions
    from pyvmm.qmp.server import ControlServer
    from pyvmm.runtime_directory.announcement import ListeningSocket
    from pyvmm.sockets.unix import UnixListener
    from pyvmm.vm import VirtualMachine


class VmRun:
    """The run of one VM; leaving `stack` releases everything it has opened.

    `vm` is the VM, once it exists, and `tracer` receives its events, which go to the recording that
    `record` names; `terminal` is that on standard input, `caught` has the signals that have ended
    the VM. `announced` is the control socket by which the guest is announced, if it is. Raises
    `RecordingNotWritten`.
    """

    def __init__(
        self,
        stack: AsyncExitStack,
        sockets: Sequence[Path],
        ports: Sequence[PortOption],
        record: RecordOptions | None = None,
        announced: ListeningSocket | None = None,
    ) -> None:
        self._stack = stack
        self._record = record
        self._announced = announced
        self.tracer = EventTracer()
        self._loop = asyncio.get_running_loop()
        self.terminal = Terminal(0)
        self.signals = EndSignals(self._loop, self.end_by_signal, self.release)
        stack.callback(self.signals.close)
        self.vm: VirtualMachine | None = None
        self.caught: list[int] = []
        self._listeners = [self._bind(path) for path in sockets]
        self._port_hosts = self._make_port_hosts(ports) if ports else None
        if record is not None:
            self._start_recording(record)

    def _bind(self, path: Path) -> UnixListener:
        # Late: saves 0.9 ms without --qmp.
        from pyvmm.sockets.lab_paths import listening_path
        from pyvmm.sockets.unix import UnixListener

        listener = UnixListener(listening_path(path), shown_as=path)
        self._stack.callback(listener.remove)
        return listener

    def _make_port_hosts(self, ports: Sequence[PortOption]) -> PortHosts:
        # Late: saves 3 ms without --port.
        from pyvmm.cli.console.ports import PortHosts

        return PortHosts(self._stack, ports)

    def _start_recording(self, record: RecordOptions) -> None:
        # Late: saves 2 ms without --record.
        from pyvmm.trace.recorder import Recorder
        from pyvmm.trace.recording_file import RecordingFile

        recorder = Recorder(self.tracer, RecordingFile(record.path, record.limit_bytes))
        recorder.start()
        self._stack.callback(recorder.close)

    def adopt(self, vm: VirtualMachine) -> None:
        """Run `vm`: connect its ports, and limit the time that its end may take."""
        vm.ending.add_done_callback(lambda ending: self.signals.limit())
        self.vm = vm
        if self._record is not None:
            for counters in self.tracer.exits():
                counters.sample_every = self._record.sample_every
        if self._port_hosts is not None:
            self._port_hosts.connect(vm)

    async def serve_sockets(self, vm: VirtualMachine) -> None:
        """Serve the control sockets; all are closed at once, as each may wait for its clients."""
        if self._announced is not None:
            announced = AnnouncedServer(self._loop, vm, self._announced)
            self._stack.push_async_callback(announced.close)
        if not self._listeners:
            return
        # Late: saves 5 ms without --qmp.
        from pyvmm.qmp.server import ControlServer

        servers = [ControlServer(vm, listener) for listener in self._listeners]
        for server in servers:
            await server.start()

        async def close() -> None:
            await asyncio.gather(*(server.close() for server in servers))

        self._stack.push_async_callback(close)

    def close_vm(self) -> None:
        """Disconnect the VM's ports and close it, if there is one."""
        if self._port_hosts is not None:
            self._port_hosts.disconnect()
        if self.vm is not None:
            self.vm.close()
            self.vm = None

    def exit_status(self, default: int) -> int:
        """Return the exit status after a signal, or `default` if there was none."""
        return 128 + self.caught[0] if self.caught else default

    def end_by_signal(self, signum: int) -> None:
        """End the VM because of a signal."""
        self.caught.append(signum)
        if self.vm is not None:
            self.vm.end(ExitResult(ExitReason.SIGNAL))

    def release(self) -> None:
        """Restore the terminal and remove the sockets, on any thread."""
        self.terminal.restore()
        for listener in self._listeners:
            listener.remove()
        if self._announced is not None:
            self._announced.remove()


class AnnouncedServer:
    """The control server of `vm` at `listener`, imported and started when a client connects.

    Threads: event loop.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, vm: VirtualMachine, listener: ListeningSocket
    ) -> None:
        self._loop = loop
        self._vm = vm
        self._listener = listener
        self._server: asyncio.Task[ControlServer] | None = None
        listener.socket.setblocking(False)
        loop.add_reader(listener.socket, self._first_client)

    def _first_client(self) -> None:
        self._loop.remove_reader(self._listener.socket)
        self._server = self._loop.create_task(self._start())

    async def _start(self) -> ControlServer:
        # Late: saves 5 ms of every start, for a guest without clients.
        from pyvmm.qmp.server import ControlServer

        server = ControlServer(self._vm, self._listener)
        await server.start()
        return server

    async def close(self) -> None:
        """Serve no longer, and remove the announcement."""
        if self._server is not None:
            await (await self._server).close()
        else:
            self._loop.remove_reader(self._listener.socket)
        self._listener.remove()
