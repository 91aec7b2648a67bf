# SPDX-License-Identifier: Apache-2.0
"""The ports of `pyvmm run`: the option --port, and the terminal as the virtio console.

A port's host is the clients of a unix socket, one after the other, or a file that its output is
appended to. The sockets are bound and the files opened before the machine is created, so an
unusable path is reported first; the ports are connected before the guest runs.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from devices.console.names import CONSOLE_NAME, is_port_name
from pyvmm.cli.console.output_file import open_for_appending
from pyvmm.cli.errors import CommandError
from pyvmm.console.socket_host import PortServer
from pyvmm.console.writer import ConsoleWriter
from pyvmm.console.writer_host import WriterHost
from pyvmm.sockets.addresses import parse_unix_address
from pyvmm.sockets.lab_paths import listening_path
from pyvmm.sockets.unix import UnixListener

if TYPE_CHECKING:
    from pyvmm.cli.console.terminal import ConsoleIo
    from pyvmm.console.ports import LockedPort
    from pyvmm.vm import VirtualMachine

_log = logging.getLogger(__name__)


class PortOption(NamedTuple):
    """One --port: the `name` of the port, and the `path` of its socket or file."""

    name: str
    path: Path
    is_socket: bool


def parse_ports(values: Sequence[str]) -> list[PortOption]:
    """Return the ports of --port. Raises `UserError`."""
    ports = [_parse_port(value) for value in values]
    names = [port.name for port in ports]
    for name in names:
        if names.count(name) > 1:
            raise CommandError(f"two ports are named {name!r}", "give each --port its own name")
    return ports


def _parse_port(value: str) -> PortOption:
    name, _, address = value.partition("=")
    scheme, _, path = address.partition(":")
    if not is_port_name(name) or name == CONSOLE_NAME:
        raise CommandError(
            f"a port cannot be named {name!r}", "give --port NAME=unix:PATH or NAME=file:PATH"
        )
    if scheme == "unix":
        return PortOption(name, parse_unix_address(address), is_socket=True)
    if scheme == "file" and path:
        return PortOption(name, Path(path), is_socket=False)
    raise CommandError(
        f"port {name!r} cannot be connected to {address!r}", "give unix:PATH or file:PATH"
    )


class PortHosts:
    """The hosts of the ports `options`, whose sockets and files are closed when `stack` is left.

    Raises `UserError` for a socket or file that cannot be used.
    """

    def __init__(self, stack: ExitStack, options: Sequence[PortOption]) -> None:
        self._listeners: dict[str, UnixListener] = {}
        self._files: dict[str, int] = {}
        self._connected: list[PortServer | ConsoleWriter] = []
        for option in options:
            if option.is_socket:
                listener = UnixListener(listening_path(option.path), shown_as=option.path)
                stack.callback(listener.remove)
                self._listeners[option.name] = listener
            else:
                self._files[option.name] = open_for_appending(option.path, "that --port")
                stack.callback(os.close, self._files[option.name])

    def connect(self, vm: VirtualMachine) -> None:
        """Connect the ports of `vm`. Raises `CommandError` for a port that it does not have."""
        for name, listener in self._listeners.items():
            self._connected.append(PortServer(self._port(vm, name), listener))
        for name, fd in self._files.items():
            port, writer = self._port(vm, name), _file_writer(name, fd)
            self._connected.append(writer)
            WriterHost(asyncio.get_running_loop(), port, writer)

    def disconnect(self) -> None:
        """Disconnect all ports, before their VM is closed."""
        for each in self._connected:
            each.close()
        self._connected.clear()

    def _port(self, vm: VirtualMachine, name: str) -> LockedPort:
        try:
            return vm.ports[name]
        except KeyError:
            names = ", ".join(vm.config.ports) or "none"
            raise CommandError(
                f"the guest has no port {name!r}", f"leave out that --port; it has: {names}"
            ) from None


def connect_terminal(vm: VirtualMachine, console: ConsoleIo) -> LockedPort:
    """Make `console` the host of the console on port 0 of `vm`, and return the port."""
    port = vm.ports[CONSOLE_NAME]
    WriterHost(asyncio.get_running_loop(), port, console.writer, console.send_pending)
    resize_to_window(port)
    return port


def resize_to_window(port: LockedPort) -> None:
    """Give `port` the window size of the terminal on standard output, if that is one."""
    try:
        size = os.get_terminal_size(1)
    except OSError:  # not a terminal
        return
    port.resize(size.columns, size.lines)


def _file_writer(name: str, fd: int) -> ConsoleWriter:
    def lost() -> None:
        _log.warning("the output of port %s cannot be written: %s", name, writer.error)

    writer = ConsoleWriter(fd)
    writer.lost.add(lost)
    return writer
