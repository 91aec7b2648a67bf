# SPDX-License-Identifier: Apache-2.0
"""The console device (VIRTIO 1.2, section 5.3): ports with a stream of bytes in both directions.

Port N has two queues: 0 and 1 for port 0, 2 N + 2 and 2 N + 3 for the others. Queues 2 and 3 carry
control messages (`devices.console.control`), with which the device announces its ports and either
side opens and closes them. With MULTIPORT ports can be added and removed at any time. A driver
without MULTIPORT has port 0 only, and no control queues.

A transmit queue is served as the driver notifies it, in order, until the host accepts no more;
then it is stalled, with one buffer in flight. Buffers of a receive queue are taken when there is
something to put into them. The host takes output from guest memory. So the device keeps no data of
its own, and no driver and no host can make it grow.

Saved state. A buffer in flight is taken from the ring again after a restore, and the bytes that the
host had accepted are skipped. Hosts belong to the process: each port is closed in the eyes of the
driver, and opened again when the new process connects a host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from devices.console.config import FEATURE_NAMES, MULTIPORT, SIZE, config_space
from devices.console.control import (
    HEADER,
    WINDOW_SIZE,
    ControlMessage,
    Event,
    PendingMessages,
    decode,
)
from devices.console.names import CONSOLE_NAME, MAX_PORTS, is_port_name
from devices.console.port import ConsolePort
from devices.console.queues import (
    CONTROL_RECEIVE,
    CONTROL_TRANSMIT,
    port_of,
    queue_specs,
    receive_queue,
    transmit_queue,
)
from devices.console.saved import check_ports
from devices.errors import BadPayload
from devices.ports import Tracer
from devices.state import Fields, Payload, Restore
from devices.virtio.device import BUFFERS_PER_CALL, SavedDevice, VirtioDevice
from devices.virtio.queue import DeviceQueue
from devices.virtio.status import Status
from pyvmm_native.memory import GuestMemory
from pyvmm_native.ring import Chain, RingError, SplitQueue

DEVICE_ID = 3
"""VIRTIO 1.2, 5.3.1."""


class ConsoleDevice(VirtioDevice):
    """Console over guest memory `memory`, with a port for each name in `ports`.

    With `console` port 0 is a console, named `CONSOLE_NAME`; other ports have numbers from 1, below
    `max_ports`. A driver sets up the queues of all possible ports, which delays its start. Raises
    ValueError as `add_port` does.
    """

    def __init__(
        self,
        memory: GuestMemory,
        tracer: Tracer,
        *,
        console: bool = True,
        ports: Sequence[str] = (),
        max_ports: int = MAX_PORTS,
    ) -> None:
        if not 1 <= max_ports <= MAX_PORTS:
            raise ValueError(f"a console has 1 to {MAX_PORTS} ports, not {max_ports}")
        super().__init__(
            device_id=DEVICE_ID,
            name="console",
            offered=SIZE | MULTIPORT,
            feature_names=FEATURE_NAMES,
            queues=queue_specs(max_ports),
            config=config_space(max_ports, tracer),
            memory=memory,
            tracer=tracer,
        )
        self.max_ports = max_ports
        self._ports: dict[int, ConsolePort] = {}
        self._pending = PendingMessages()
        self._driver_ready = False  # DEVICE_READY was received
        self._paused = False
        if console:
            self._ports[0] = ConsolePort(0, CONSOLE_NAME, is_console=True, device=self)
        for name in ports:
            self.add_port(name)

    # --- The host's side ----------------------------------------------------------------------
    @property
    def ports(self) -> Mapping[str, ConsolePort]:
        """All ports, by name."""
        return {port.name: port for port in self._ports.values()}

    def add_port(self, name: str) -> ConsolePort:
        """Plug in a port and return it.

        ValueError if `name` is no name of a port or in use, or if there are `max_ports`.
        """
        if not is_port_name(name) or name in self.ports:
            raise ValueError(f"a port cannot be named {name!r}, or there is one already")
        number = next((each for each in range(1, self.max_ports) if each not in self._ports), None)
        if number is None:
            raise ValueError(f"port {name!r} would be one more than the {self.max_ports} possible")
        port = self._ports[number] = ConsolePort(number, name, is_console=False, device=self)
        # A driver that resumes from suspend does not send DEVICE_READY again.
        if self._driver_ready or any(each.ready for each in self._ports.values()):
            self._send(port, Event.DEVICE_ADD)
        return port

    def remove_port(self, port: ConsolePort) -> None:
        """Unplug `port`, with its host; ValueError for the console, or a port not plugged in."""
        if port.is_console or self._ports.get(port.number) is not port:
            raise ValueError(f"port {port.name!r} cannot be removed")
        del self._ports[port.number]
        self._pending.drop(port.number)
        if port.announced:
            self._send(port, Event.DEVICE_REMOVE)
        port.unplug()

    @property
    def live(self) -> bool:
        """As `VirtioDevice.live`; False while the machine is paused."""
        return super().live and not self._paused

    def set_paused(self, paused: bool) -> None:
        """Serve no queue and no host from now on, as the guest's memory is copied; or do again.

        Unlike other devices, this one could be made to work by a host.
        """
        self._paused = paused
        for queue in () if paused else self.queues:
            if queue.ring is not None:
                self.queue_ready(queue.index)

    # --- Queues -------------------------------------------------------------------------------
    @property
    def multiport(self) -> bool:
        """True if the driver has accepted MULTIPORT."""
        return bool(self.accepted & MULTIPORT)

    def has_queue(self, index: int) -> bool:
        """As `VirtioDevice.has_queue`; 5.3.2: most queues exist only with MULTIPORT."""
        negotiated = self.accepted if self.status & Status.FEATURES_OK else self.offered
        return index < (len(self.queues) if negotiated & MULTIPORT else CONTROL_RECEIVE)

    def process_queue(self, index: int) -> bool:
        """As `VirtioDevice.process_queue`; a driver notifies a receive queue of room for data."""
        if self._paused:
            return False
        port = self._port_of(index)
        if index % 2:
            if self.queues[index].stalled and port is not None:
                port.resume()  # bus mastering may have been disabled when the host had room
            return super().process_queue(index)
        if index == CONTROL_RECEIVE:
            return self._send_pending()
        if port is not None:
            port.supplied()
        return False

    def serve(self, queue: int, chain: Chain) -> int | None:
        """Act on a control message, or pass a buffer to the host of its port."""
        if chain.writable_bytes:
            # 5.3.6.1: the driver MUST NOT put a device-writable buffer in a transmitq.
            raise BadPayload(f"a buffer to transmit has {chain.writable_bytes} writable bytes")
        if queue == CONTROL_TRANSMIT:
            self._act_on(decode(chain.readable))
            return 0
        return 0 if self.serve_stream(queue, [chain]) else None

    def serve_stream(self, queue: int, chains: list[Chain]) -> int:
        """Pass buffers to the host of their port."""
        port = self._port_of(queue)
        if port is None:
            raise BadPayload("there is no such port")
        returned = port.transmit(chains)
        self.queues[queue].stalled = returned < len(chains)
        return returned

    def _port_of(self, queue: int) -> ConsolePort | None:
        number = port_of(queue)
        return None if number is None else self._ports.get(number)

    def _fill(
        self, index: int, is_pending: Callable[[], bool], write: Callable[[Chain], int]
    ) -> bool:
        """While `is_pending`, take a buffer of a receive queue, `write` to it and return it.

        `write` returns the number of bytes written, 0 if the buffer cannot be used. Returns whether
        there is more to do: the number of buffers is limited.
        """
        queue = self.queues[index]
        ring = queue.ring
        if ring is None or not self.live:
            return False
        try:
            self._fill_ring(queue, ring, is_pending, write)
            return is_pending() and ring.pending > 0
        except RingError as error:
            self._break(queue, error)
            return False

    def _fill_ring(
        self,
        queue: DeviceQueue,
        ring: SplitQueue,
        is_pending: Callable[[], bool],
        write: Callable[[Chain], int],
    ) -> None:
        ring.disable_notifications()
        try:
            for _ in range(BUFFERS_PER_CALL):
                if not is_pending():
                    break
                chain = ring.pop(0)
                if chain is None and ring.enable_notifications():
                    chain = ring.pop(0)
                if chain is None:
                    break
                queue.counters.requests += 1
                # 5.3.6.1: the driver MUST NOT put a device-readable buffer in a receiveq.
                written = 0 if chain.readable_bytes else write(chain)
                if not written:
                    queue.counters.bad_payloads += 1
                    self._trace("bad_payload", queue=queue.spec.name, why="no room for input")
                ring.push(chain, written)
        finally:
            # 2.7.7.2: buffers used before the ring broke MUST still be notified.
            self._notify_used(queue, ring)

    # --- Called by ports ----------------------------------------------------------------------
    def receive(self, port: ConsolePort, data: bytes) -> int:
        """As `PortDevice.receive`; no data before the driver has opened the port."""
        if self.multiport and not port.guest_open:
            return 0
        view, done = memoryview(data), 0

        def write(chain: Chain) -> int:
            nonlocal done
            written = chain.write(view[done : done + chain.writable_bytes])
            done += written
            return written

        queue = receive_queue(port.number)
        if self._fill(queue, lambda: done < len(view), write):
            self.queue_ready(queue)
        return done

    def transmitted(self, port: ConsolePort, chain: Chain) -> None:
        """As `PortDevice.transmitted`."""
        queue = transmit_queue(port.number)
        self.complete(queue, chain)
        self.resume_queue(queue)

    def host_changed(self, port: ConsolePort) -> None:
        """As `PortDevice.host_changed`; a driver that sets the port up later is told then."""
        if port.ready and port.told_host_open != (port.host is not None):
            port.told_host_open = port.host is not None
            self._send(port, Event.PORT_OPEN, int(port.told_host_open))

    def resized(self, port: ConsolePort) -> None:
        """As `PortDevice.resized`; `cols` and `rows` apply to port 0 (5.3.6)."""
        if port.number == 0:
            self.config["cols"], self.config["rows"] = port.window_size
            self.config_changed()
        if port.ready:
            self._send_size(port)

    # --- Control messages ---------------------------------------------------------------------
    def _act_on(self, message: ControlMessage) -> None:
        if message.event is Event.DEVICE_READY:
            self._driver_ready = bool(message.value)
            for each in self._ports.values() if message.value else ():
                if not each.announced:
                    self._send(each, Event.DEVICE_ADD)
            return
        port = self._ports.get(message.port)
        if port is None:
            raise BadPayload(f"there is no port {message.port}")
        if message.event is Event.PORT_READY:
            if self._driver_ready and not port.announced:
                raise BadPayload(f"port {port.number} was not added yet")
            self._configure(port, bool(message.value))
        elif port.ready:
            port.set_guest_open(bool(message.value))
        else:
            raise BadPayload(f"port {port.number} is not ready")

    def _configure(self, port: ConsolePort, is_ready: bool) -> None:
        """Tell the driver everything about a port that it has set up (5.3.5)."""
        port.ready = is_ready
        if not is_ready:  # the driver could not set it up
            port.set_guest_open(False)
            port.told_host_open = False
            return
        port.announced = True  # a driver that resumes from suspend knows the port
        if port.is_console:
            self._send(port, Event.CONSOLE_PORT, 1)
            self._send_size(port)
        self._send(port, Event.PORT_NAME)
        port.told_host_open = port.host is not None
        if port.told_host_open:
            self._send(port, Event.PORT_OPEN, 1)

    def _send_size(self, port: ConsolePort) -> None:
        if port.is_console and any(port.window_size):
            self._send(port, Event.RESIZE)

    def _send(self, port: ConsolePort, event: Event, value: int = 0) -> None:
        self._pending.add(port.number, event, value)
        if self._send_pending():
            self.queue_ready(CONTROL_RECEIVE)

    def _send_pending(self) -> bool:
        return self._fill(CONTROL_RECEIVE, lambda: len(self._pending) > 0, self._write_message)

    def _write_message(self, chain: Chain) -> int:
        """Write the first pending message; one that a buffer has no room for stays pending."""
        message = self._pending.first
        data = HEADER.pack(*message)
        port = self._ports.get(message.port)
        if port is not None and message.event is Event.PORT_NAME:
            data += port.name.encode()
        elif port is not None and message.event is Event.RESIZE:
            data += WINDOW_SIZE.pack(*port.window_size)
        if len(data) > chain.writable_bytes:
            return 0
        self._pending.take_first()
        if port is not None and message.event is Event.DEVICE_ADD:
            port.announced = True
        return chain.write(data)

    # --- Reset and state ----------------------------------------------------------------------
    def on_reset(self) -> None:
        """Forget the driver."""
        self._driver_ready = False
        self._pending.clear()
        for port in self._ports.values():
            port.on_reset()

    def on_queue_reset(self, queue: int) -> None:
        """As `VirtioDevice.on_queue_reset`."""
        port = self._port_of(queue)
        if port is not None and queue == transmit_queue(port.number):
            port.drop_held()

    def save_own_state(self) -> Payload:
        """Return the ports and the pending control messages."""
        return {
            "driver_ready": self._driver_ready,
            "ports": [port.save_state() for port in self._ports.values()],
            "pending": self._pending.save_state(),
        }

    def check_own_state(self, state: Fields, saved: SavedDevice) -> Restore:
        """As `VirtioDevice.check_own_state`; the ports become those of the saved device."""
        driver_ready = state.flag("driver_ready")
        pending = PendingMessages.from_state(state, "pending", self.max_ports)
        ports, restores = check_ports(self, state, saved, self._ports)

        def restore() -> None:
            for number, port in self._ports.items():
                if ports.get(number) is not port:  # it was unplugged at the source
                    port.unplug()
            self._ports = ports
            self._driver_ready = driver_ready
            self._pending = pending
            for restore_port in restores:
                restore_port()
            for port in ports.values():
                self._reconnect(port)

        return restore

    def _reconnect(self, port: ConsolePort) -> None:
        """Tell the driver of this process's host and window, not of those of the saved device."""
        self._pending.drop(port.number, Event.RESIZE)
        if port.told_host_open:
            port.on_restored()
            self._pending.add(port.number, Event.PORT_OPEN, 0)
        if port.ready:
            self.host_changed(port)
            self._send_size(port)
