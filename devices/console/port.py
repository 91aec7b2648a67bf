# SPDX-License-Identifier: Apache-2.0
"""One port of the console, as a program on the host sees it.

A port is a stream of bytes in both directions with flow control. On the host's side a `PortHost`
is connected to it:

* Output of the guest is passed to `PortHost.write`, several buffers at once, which accepts as many
  bytes as it has room for. If it does not accept all of them, one buffer stays in flight, no
  further buffer is taken, and so a driver whose queue is full waits; `resume` continues.
* Input for the guest is passed to `offer`, which accepts as many bytes as the driver has supplied
  buffers for, and none before the driver has opened the port. If it does not accept all of them,
  `PortHost.room_available` is called when there may be room.

So neither side can make the other buffer data, and nothing is lost while both sides are open. What
the guest writes to a port without a host is discarded, as by a serial line without a cable. Only in
a restored guest, whose host was left behind, it waits for the next host, which can then continue;
except on a console, as a kernel that prints would wait, too.

Nothing here locks: every method, and every call of a `PortHost`, happens under the device lock.
"""

from __future__ import annotations

from typing import Protocol

from devices.state import Fields, Payload, Restore
from pyvmm_native.chain_reader import ChainReader
from pyvmm_native.ring import Chain

MAX_WRITE_BYTES = 1 << 20
"""Longest buffer that a driver may transmit; Linux sends at most a pipe's contents at once."""


class PortHost(Protocol):
    """The host's end of a port. No method may call the port; all return at once."""

    def write(self, output: ChainReader) -> int:
        """Accept output of the guest; return the number of bytes accepted.

        If these are not all, `ConsolePort.resume` must be called when there is room. `output` is
        not empty, and must not be used after the call.
        """

    def room_available(self) -> None:
        """Note that `ConsolePort.offer` may accept more than it last did."""

    def guest_open_changed(self, is_open: bool) -> None:
        """Note that a program in the guest has opened or closed the port."""

    def unplugged(self) -> None:
        """Note that the port is gone, and with it this connection."""


class PortDevice(Protocol):
    """The device, as its ports need it."""

    @property
    def live(self) -> bool:
        """True while the device may access the rings."""

    def receive(self, port: ConsolePort, data: bytes) -> int:
        """Write `data` to buffers of the port's receive queue; return the bytes written."""

    def transmitted(self, port: ConsolePort, chain: Chain) -> None:
        """Return a buffer of the port's transmit queue that was kept, and take further ones."""

    def host_changed(self, port: ConsolePort) -> None:
        """Tell the driver whether the port has a host."""

    def resized(self, port: ConsolePort) -> None:
        """Tell the driver the port's window size."""


class ConsolePort:
    """Port `number` of `device`, called `name` in the guest; may be a console, `is_console`.

    `host` is the connected host, if any; `guest_open` is True while a program in the guest has the
    port open; `removed` is True once the port was unplugged. `window_size` is (columns, rows), (0,
    0) if not known. `output_bytes` counts bytes from the guest that the host accepted,
    `input_bytes` those for the guest, and `discarded_bytes` output without a host.

    The driver was told of the port if `announced`, has set it up if `ready`, and was last told that
    it has a host if `told_host_open`.
    """

    def __init__(self, number: int, name: str, *, is_console: bool, device: PortDevice) -> None:
        self.number = number
        self.name = name
        self.is_console = is_console
        self.host: PortHost | None = None
        self.removed = False
        self.window_size = (0, 0)
        self.output_bytes = 0
        self.input_bytes = 0
        self.discarded_bytes = 0
        self._device = device
        self._refused = False  # offer() accepted less than it was offered
        self._held: Chain | None = None  # a buffer that the host has not accepted completely
        self._consumed_bytes = 0  # of the buffer held, or of the next one after a restore
        self._awaits_host = False  # restored: output waits for the next host
        self._forget_driver()

    def _forget_driver(self) -> None:
        self.announced = False
        self.ready = False
        self.guest_open = False
        self.told_host_open = False

    # Called by the host.

    def connect(self, host: PortHost) -> None:
        """Make `host` the port's host, which the driver is told.

        RuntimeError if there is one, or if the port was unplugged.
        """
        if self.host is not None or self.removed:
            state = "was unplugged" if self.removed else "has a host already"
            raise RuntimeError(f"port {self.name!r} {state}")
        self.host = host
        self._awaits_host = False
        self._device.host_changed(self)
        self.resume()

    def disconnect(self) -> None:
        """Disconnect the host; does nothing without one."""
        if self.host is None:
            return
        self.host = None
        self._device.host_changed(self)
        self.resume()

    def offer(self, data: bytes) -> int:
        """Pass input to the guest; return the number of bytes accepted."""
        accepted = 0 if self.removed else self._device.receive(self, data)
        self._refused = accepted < len(data)
        self.input_bytes += accepted
        return accepted

    def resume(self) -> None:
        """Continue with the guest's output, after `PortHost.write` did not accept all of it."""
        chain = self._held
        if chain is None or not self._device.live or not self._deliver([chain]):
            return
        self._held = None
        self._device.transmitted(self, chain)

    def resize(self, columns: int, rows: int) -> None:
        """Set the window size, in characters, up to 65535 each; ValueError beyond that."""
        if not (0 <= columns < 1 << 16 and 0 <= rows < 1 << 16):
            raise ValueError(f"a window cannot have {columns} columns and {rows} rows")
        if (columns, rows) != self.window_size:
            self.window_size = (columns, rows)
            self._device.resized(self)

    # Called by the device.

    def transmit(self, chains: list[Chain]) -> int:
        """Pass buffers to the host; return how many were passed on. The next one stays in flight.

        No buffer may be in flight.
        """
        complete = self._deliver(chains)
        if complete < len(chains):
            self._held = chains[complete]
        return complete

    def supplied(self) -> None:
        """Note that the driver has supplied buffers for input."""
        if self._refused and self.host is not None:
            self._refused = False
            self.host.room_available()

    def set_guest_open(self, is_open: bool) -> None:
        """Note that a program in the guest has opened or closed the port."""
        if is_open == self.guest_open:
            return
        self.guest_open = is_open
        if self.host is not None:
            self.host.guest_open_changed(is_open)
        if is_open:
            self.supplied()

    def on_restored(self) -> None:
        """Note that the host of the saved port was left behind."""
        self.told_host_open = False
        self._awaits_host = self.host is None and not self.is_console

    def on_reset(self) -> None:
        """Forget the driver, whose buffers are its own again."""
        self._awaits_host = False
        self.set_guest_open(False)
        self.drop_held()
        self._forget_driver()

    def drop_held(self) -> None:
        """Drop the buffer in flight: the driver has reclaimed it."""
        self._held = None
        self._consumed_bytes = 0

    def unplug(self) -> None:
        """Discard the guest's output, and accept no input from now on."""
        self.removed = True
        host, self.host = self.host, None
        if host is not None:
            host.unplugged()
        self._awaits_host = False
        chain, self._held = self._held, None
        if chain is not None:
            self._deliver([chain])
            self._device.transmitted(self, chain)

    def save_state(self) -> Payload:
        """Return the state without the host's side, which belongs to its process."""
        return {
            "number": self.number,
            "name": self.name,
            "is_console": self.is_console,
            "announced": self.announced,
            "ready": self.ready,
            "guest_open": self.guest_open,
            "told_host_open": self.told_host_open or self._awaits_host,
            "held": [] if self._held is None else [self._consumed_bytes],
            "output_bytes": self.output_bytes,
            "input_bytes": self.input_bytes,
            "discarded_bytes": self.discarded_bytes,
        }

    def check_state(self, state: Fields) -> tuple[bool, Restore]:
        """Check the rest of a saved port; return whether a buffer was held, and the restore."""
        flags = [
            state.flag(name) for name in ("announced", "ready", "guest_open", "told_host_open")
        ]
        if any(flags[2:]) and not flags[1]:
            raise state.error("ready", "is false of a port that is open")
        held = state.numbers("held", at_most=1, below=MAX_WRITE_BYTES)
        counters = [
            state.counter(name) for name in ("output_bytes", "input_bytes", "discarded_bytes")
        ]

        def restore() -> None:
            self.announced, self.ready, self.guest_open, self.told_host_open = flags
            self._held, self._consumed_bytes, self._awaits_host = None, sum(held), False
            self.output_bytes, self.input_bytes, self.discarded_bytes = counters

        return bool(held), restore

    def _deliver(self, chains: list[Chain]) -> int:
        """Pass to the host what it has not accepted yet; return how many buffers are complete."""
        if self._awaits_host:
            return 0
        # After a restore the buffer was read again, and may have become shorter.
        self._consumed_bytes = min(self._consumed_bytes, chains[0].readable_bytes)
        output = ChainReader(chains, self._consumed_bytes)
        accepted = len(output)
        if self.host is None:
            self.discarded_bytes += accepted
        elif accepted:
            accepted = self.host.write(output)
            self.output_bytes += accepted
        if accepted == len(output):
            self._consumed_bytes = 0
            return len(chains)
        self._consumed_bytes += accepted
        complete = 0
        while self._consumed_bytes >= chains[complete].readable_bytes:
            self._consumed_bytes -= chains[complete].readable_bytes
            complete += 1
        return complete
