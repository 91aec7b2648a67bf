# SPDX-License-Identifier: Apache-2.0
"""The ports of a machine's console device, for callers that do not hold the device lock."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from devices.console.device import ConsoleDevice
from devices.console.queues import transmit_queue

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from devices.console.port import ConsolePort, PortHost
    from pyvmm.machine.machine import Machine

_POLL_S = 0.01


class LockedPort:
    """`port`, each of whose methods is called under `lock`; not to be used by a `PortHost`.

    Threads: any that does not hold the device lock.
    """

    def __init__(self, port: ConsolePort, lock: threading.Lock) -> None:
        self._port = port
        self._lock = lock

    @property
    def name(self) -> str:
        """The port's name."""
        return self._port.name

    @property
    def removed(self) -> bool:
        """True once the port was unplugged, or the VM closed."""
        return self._port.removed

    def connect(self, host: PortHost) -> None:
        """Connect `host`; RuntimeError if the port has one, or was unplugged."""
        with self._lock:
            self._port.connect(host)

    def disconnect(self) -> None:
        """Disconnect the host, if any."""
        with self._lock:
            self._port.disconnect()

    def offer(self, data: bytes) -> int:
        """Pass input to the guest; return the number of bytes accepted."""
        with self._lock:
            return self._port.offer(data)

    def resume(self) -> None:
        """Continue with the guest's output: the host has room."""
        with self._lock:
            self._port.resume()

    def resize(self, columns: int, rows: int) -> None:
        """Set the window size in characters; ValueError if it is impossible."""
        with self._lock:
            self._port.resize(columns, rows)


class ConsolePorts:
    """All ports of `machine`, some of which may be plugged in and unplugged while it runs.

    KeyError for a machine without a console device.

    Threads: event loop.
    """

    def __init__(self, machine: Machine) -> None:
        device = machine.pci_devices["console"]
        assert isinstance(device.model, ConsoleDevice)
        self._model = device.model
        self._transport = device.transport
        self._lock = machine.lock

    def __getitem__(self, name: str) -> LockedPort:
        """Return the port called `name`; KeyError if there is none."""
        with self._lock:
            return LockedPort(self._model.ports[name], self._lock)

    def add(self, name: str) -> LockedPort:
        """Plug in a port called `name` and return it.

        ValueError if the name is in use or no file name, or if there are as many ports as the
        configuration allows.
        """
        with self._lock:
            return LockedPort(self._model.add_port(name), self._lock)

    def remove(self, name: str) -> None:
        """Unplug a port; KeyError if there is none, ValueError for the console."""
        with self._lock:
            self._model.remove_port(self._model.ports[name])

    def set_paused(self, paused: bool) -> None:
        """Serve no port while the guest is paused: its hosts could make its memory change."""
        with self._lock:
            self._model.set_paused(paused)

    async def drain(self, timeout_s: Callable[[], float]) -> bool:
        """Pass on the output that a guest which has ended has left in the queues.

        A program's write to a port returns before the device has taken the buffer. Waits for hosts
        without room for at most `timeout_s()` seconds, which may become fewer in the meantime;
        returns whether all output was passed on.
        """
        begin = time.monotonic()
        while True:
            with self._lock:
                queues = [transmit_queue(port.number) for port in self._model.ports.values()]
                more = [self._transport.serve_queue(queue) for queue in queues]
                stalled = [self._model.queues[queue].stalled for queue in queues]
            if not any(more + stalled):
                return True
            if time.monotonic() - begin > timeout_s():
                return False
            await asyncio.sleep(0 if any(more) else _POLL_S)

    def close(self) -> None:
        """Disconnect all hosts for good, before the machine is closed."""
        with self._lock:
            for port in self._model.ports.values():
                port.unplug()
