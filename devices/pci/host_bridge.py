# SPDX-License-Identifier: Apache-2.0
"""The PCI root: bus 0, its host bridge at 00:00.0 and two configuration mechanisms.

`PciBus` maps device numbers to functions (function 0 only) and decides where BARs may be decoded:
entirely within one of its apertures, without overlap with anything else on the MMIO bus. So a guest
can never place a BAR over RAM or an interrupt controller.

`ConfigMechanism1` is the eight ports 0xCF8-0xCFF (PCI Local Bus 3.0, 3.2.2.3.2). Only an aligned
32-bit access to 0xCF8 reaches the address latch. While the latch's enable bit is set, 1, 2 or 4
bytes at 0xCFC-0xCFF are the corresponding bytes of the selected configuration register. Functions
that do not exist read as all ones. Of the narrower accesses to the first four ports, a byte at
0xCF9 is the reset control register of Intel's PC chipsets (82371SB data sheet, RC): writing its
bit 2 resets the machine. Its other bits choose the kind of reset; there is only one here.

`EnhancedConfig` is ECAM, the memory-mapped mechanism (PCI Express 3.0, 7.2.2): 4 KiB for each
function. Ours have the 256 bytes of conventional PCI; the rest reads as all ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from devices.bus import Bus
from devices.pci.config_space import CONFIG_SPACE_BYTES, PciFunction
from devices.ports import BusDevice, InterruptLine, Tracer
from devices.state import Fields, Payload

DEVICES_PER_BUS = 32
"""Device numbers on a bus."""
ECAM_BYTES_PER_BUS = 1 << 20
"""Size of the memory-mapped configuration space of a bus: 4 KiB for each of 256 functions."""

_ADDRESS_ENABLE = 1 << 31
_ADDRESS_WRITABLE = 0x80FF_FFFC
_RESET_CONTROL_OFFSET = 1
_RESET_CPU = 1 << 2
_DATA_OFFSET = 4

# Red Hat's generic host bridge, for which no operating system has quirks.
_HOST_BRIDGE_VENDOR_ID = 0x1B36
_HOST_BRIDGE_DEVICE_ID = 0x0008
_HOST_BRIDGE_CLASS_CODE = 0x060000


class PciBus:
    """Bus 0: functions by device number, and the placement of their BARs.

    `mmio` is the bus of guest-physical addresses, `apertures` the (gpa, size in bytes) windows of
    the host bridge. `host_bridge` itself is device 0.
    """

    def __init__(
        self, mmio: Bus, apertures: Sequence[tuple[int, int]], *, tracer: Tracer | None = None
    ) -> None:
        self._mmio = mmio
        self._apertures = tuple(apertures)
        self._tracer = tracer
        self._functions: dict[int, PciFunction] = {}
        self.host_bridge = PciFunction(
            vendor_id=_HOST_BRIDGE_VENDOR_ID,
            device_id=_HOST_BRIDGE_DEVICE_ID,
            class_code=_HOST_BRIDGE_CLASS_CODE,
            name="host-bridge",
            tracer=tracer.quiet if tracer else None,
        )
        self.add(0, self.host_bridge)

    def add(self, device: int, function: PciFunction, intx: InterruptLine | None = None) -> None:
        """Add `function` as 00:`device`.0, its INTx pin wired to `intx`.

        Raises ValueError when the device number is taken or does not exist.
        """
        if not 0 <= device < DEVICES_PER_BUS or device in self._functions:
            raise ValueError(f"PCI device number {device} is taken or does not exist")
        function.placement = self
        function.intx_line = intx
        self._functions[device] = function

    def function(self, bus: int, device: int, function: int) -> PciFunction | None:
        """Return the function at bus:device.function, or None."""
        return self._functions.get(device) if bus == 0 and function == 0 else None

    # --- BarPlacement -----------------------------------------------------------------------
    def place(self, gpa: int, size_bytes: int, handler: BusDevice) -> bool:
        """Decode [gpa, gpa + size_bytes) if it is inside an aperture and free."""
        accepted = any(
            start <= gpa and gpa + size_bytes <= start + length for start, length in self._apertures
        ) and not self._mmio.overlaps(gpa, size_bytes)
        if accepted:
            self._mmio.map(gpa, size_bytes, handler)
        if self._tracer is not None:
            name = "bar_placed" if accepted else "bar_refused"
            self._tracer.event(name, gpa=gpa, size_bytes=size_bytes)
        return accepted

    def remove(self, gpa: int) -> None:
        """Stop decoding the BAR at `gpa`."""
        self._mmio.unmap(gpa)


class ConfigMechanism1:
    """The configuration ports; a `BusDevice` to be mapped at 0xCF8, length 8, and `Stateful`.

    `on_reset` is called on the guest's request.
    """

    STATE_KIND = "pci_config_ports"
    STATE_VERSION = 1

    def __init__(self, bus: PciBus, on_reset: Callable[[], None]) -> None:
        self._bus = bus
        self._on_reset = on_reset
        self._address = 0

    def read(self, offset: int, size: int) -> int:
        """Read the latch, reset control, or configuration data of the selected function."""
        if offset == 0 and size == 4:
            return self._address
        if offset == _RESET_CONTROL_OFFSET and size == 1:
            return 0
        if offset < _DATA_OFFSET < offset + size:
            skipped = _DATA_OFFSET - offset
            data = range(size - skipped)
            value = sum(self.read(_DATA_OFFSET + i, 1) << (8 * i) for i in data)
            return value << (8 * skipped) | (1 << (8 * skipped)) - 1
        function = self._selected() if offset >= _DATA_OFFSET else None
        if function is None:
            return (1 << (8 * size)) - 1
        return function.config_read(self._register(offset), size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the latch, reset control, or configuration data of the selected function."""
        if offset == 0 and size == 4:
            self._address = value & _ADDRESS_WRITABLE
        elif offset == _RESET_CONTROL_OFFSET and size == 1:
            if value & _RESET_CPU:
                self._on_reset()
        elif offset < _DATA_OFFSET < offset + size:
            for i in range(_DATA_OFFSET - offset, size):
                self.write(offset + i, 1, value >> (8 * i) & 0xFF)
        elif offset >= _DATA_OFFSET:
            function = self._selected()
            if function is not None:
                function.config_write(self._register(offset), size, value)

    def save_state(self) -> Payload:
        """Return the address latch."""
        return {"address": self._address}

    def restore_state(self, fields: Fields) -> None:
        """Restore as `Stateful.restore_state`."""
        address = fields.number("address", below=1 << 32)
        if address & ~_ADDRESS_WRITABLE:
            raise fields.error("address", f"cannot be {address:#x}")
        fields.done()
        self._address = address

    def _selected(self) -> PciFunction | None:
        address = self._address
        if not address & _ADDRESS_ENABLE:
            return None
        return self._bus.function(address >> 16 & 0xFF, address >> 11 & 0x1F, address >> 8 & 0x7)

    def _register(self, offset: int) -> int:
        return (self._address & 0xFC) + offset - _DATA_OFFSET


class EnhancedConfig:
    """`BusDevice` for `ECAM_BYTES_PER_BUS` of memory: bus 0, seen without the latch."""

    def __init__(self, bus: PciBus) -> None:
        self._bus = bus

    def read(self, offset: int, size: int) -> int:
        """Read configuration data of the function that the address names."""
        function = self._function(offset, size)
        if function is None:
            return (1 << (8 * size)) - 1
        return function.config_read(offset & 0xFFF, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write configuration data of the function that the address names."""
        function = self._function(offset, size)
        if function is not None:
            function.config_write(offset & 0xFFF, size, value)

    def _function(self, offset: int, size: int) -> PciFunction | None:
        if (offset & 0xFFF) + size > CONFIG_SPACE_BYTES:
            return None
        return self._bus.function(offset >> 20, offset >> 15 & 0x1F, offset >> 12 & 0x7)
