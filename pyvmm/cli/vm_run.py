# SPDX-License-Identifier: Apache-2.0
"""The base of all runs of a VM on an event loop: its end by a signal, control sockets, and ports.

`pyvmm.cli.vm_start` has bound the sockets; they are served once the VM exists. Most guests never
get a client at the socket by which they are announced (see `pyvmm.runtime_directory`), so the
server of that socket is imported and started when the first one connects. `terminal_run` connects
the VM's console with a terminal, `command_run` runs a command in the guest.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from pyvmm.cli.asyncio_without_ssl import asyncio
from pyvmm.cli.console.raw_mode import Terminal
from pyvmm.machine.exit_result import ExitReason, ExitResult

if TYPE_CHECKING:
    from pyvmm.cli.vm_start import VmStart
    from pyvmm.qmp.server import ControlServer
    from pyvmm.runtime_directory.announcement import ListeningSocket
    from pyvmm.vm import VirtualMachine


class VmRun:
    """The run of one VM on the running event loop; leaving `stack` ends it.

    `vm` is the VM, once it exists; `terminal` is that on standard input, `caught` has the signals
    that have ended the VM.
    """

    def __init__(self, stack: AsyncExitStack, start: VmStart) -> None:
        self._stack = stack
        self._start = start
        self._loop = asyncio.get_running_loop()
        self.terminal = Terminal(0)
        self.vm: VirtualMachine | None = None
        self.caught: list[int] = []
        self.signals = start.signals
        start.releasing.add(self.terminal.restore)
        start.signalled.add(self.end_by_signal)
        start.loop.attach(self._loop)

    def adopt(self, vm: VirtualMachine) -> None:
        """Run `vm`: connect its ports, and limit the time that its end may take."""
        vm.ending.add_done_callback(lambda ending: self.signals.limit())
        self.vm = vm
        if self._start.port_hosts is not None:
            self._start.port_hosts.connect(vm)

    async def serve_sockets(self, vm: VirtualMachine) -> None:
        """Serve the control sockets; all are closed at once, as each may wait for its clients."""
        if self._start.announced is not None:
            announced = AnnouncedServer(self._loop, vm, self._start.announced)
            self._stack.push_async_callback(announced.close)
        if not self._start.listeners:
            return
        # Late: saves 5 ms without --qmp.
        from pyvmm.qmp.server import ControlServer

        servers = [ControlServer(vm, listener) for listener in self._start.listeners]
        for server in servers:
            await server.start()

        async def close() -> None:
            await asyncio.gather(*(server.close() for server in servers))

        self._stack.push_async_callback(close)

    def close_vm(self) -> None:
        """Disconnect the VM's ports and close it, if there is one."""
        if self._start.port_hosts is not None:
            self._start.port_hosts.disconnect()
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
