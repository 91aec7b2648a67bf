# SPDX-License-Identifier: Apache-2.0
"""An agent in the guest's place: the driver of a real console device, and the agent's messages."""

from __future__ import annotations

import asyncio
import struct
import threading
from collections.abc import Callable

from devices.console.control import Event
from pyvmm.guest_agent.client import GuestAgent, initial_ports
from pyvmm.guest_agent.messages import ENDED, HEADER, RUN, EndKind, Type
from tests.devices.console.console_board import ConsoleBoard, ConsoleDriver


class AgentDriver(ConsoleDriver):
    """The driver and the agent of a guest; `agent` is the VMM's side of it."""

    def __init__(self) -> None:
        super().__init__(ConsoleBoard(initial_ports(), console=False))
        self.lock = threading.Lock()
        self.agent = GuestAgent(self.console, self.lock, asyncio.get_running_loop())
        self.control_port = self.console.ports["pyvmm.agent"].number
        self.received = b""
        self.get_ready()

    def set_up_ports(self) -> None:
        """Set up the ports announced and not set up yet; open the agent's own."""
        added = [port for port, event, _, _ in self.take_messages() if event == Event.DEVICE_ADD]
        for port in added:
            self.supply(port, 16)
            self.control(port, Event.PORT_READY, 1)
            if port == self.control_port:
                self.control(port, Event.PORT_OPEN, 1)

    async def settle(self, until: Callable[[], bool] = lambda: False) -> None:
        """Let the event loop and the device work, up to a second or until `until` is true."""
        for _ in range(200):
            await asyncio.sleep(0.001)
            with self.lock:
                self.board.serve()
            self.supply_again()
            if until():
                return

    def supply_again(self) -> None:
        """Set up new ports, and take input while supplying as many buffers again."""
        with self.lock:
            self.set_up_ports()

    def take(self, port: int) -> bytes:
        """Return the input of `port`, and supply buffers for more."""
        with self.lock:
            data = self.read(port)
            self.supply(port, -(-len(data) // 4096))
        return data

    async def message(self) -> tuple[int, int, bytes]:
        """Return the type, the number and the payload of the next message of the VMM."""
        while True:
            self.received += self.take(self.control_port)
            if len(self.received) >= HEADER.size:
                length, type_, number = HEADER.unpack_from(self.received)
                end = HEADER.size + length
                if len(self.received) >= end:
                    payload, self.received = self.received[HEADER.size : end], self.received[end:]
                    return type_, number, payload
            await self.settle(lambda: self.console_has_input(self.control_port))

    def console_has_input(self, port: int) -> bool:
        self.received += self.take(port)
        return bool(self.received)

    def reply(self, type_: int, number: int, payload: bytes) -> None:
        """Send a message to the VMM."""
        self.transmit(self.control_port, HEADER.pack(len(payload), type_, number) + payload)

    def transmit(self, port: int, *buffers: bytes) -> int:
        with self.lock:
            return self.write(port, *buffers)

    def set_open(self, port: int, is_open: bool) -> None:
        """Open or close a port in the guest."""
        with self.lock:
            self.control(port, Event.PORT_OPEN, int(is_open))

    async def welcome(self, version: int = 1) -> None:
        """Connect the VMM with the agent."""
        connecting = asyncio.create_task(self.agent.connect(5))
        type_, _, value = await self.message()
        assert type_ == Type.HELLO
        self.reply(Type.HELLO_REPLY, 0, struct.pack("<I", version) + value)
        await connecting

    async def run_request(self) -> tuple[int, tuple[int, ...], list[bytes]]:
        """Return the number, the fields and the strings of the next RUN; opens its ports."""
        type_, number, payload = await self.message()
        assert type_ == Type.RUN
        fields = RUN.unpack_from(payload)
        for port in set(fields[3:6]):
            self.set_open(port, True)
        return number, fields, payload[RUN.size :].split(b"\0")[:-1]

    def end(
        self,
        number: int,
        ports: tuple[int, ...],
        kind: EndKind = EndKind.EXITED,
        value: int = 0,
        written: tuple[int, int] = (0, 0),
    ) -> None:
        """Close the ports of a command and report its end."""
        for port in set(ports):
            self.set_open(port, False)
        self.reply(Type.ENDED, number, ENDED.pack(kind, value, 0, *written))
