# SPDX-License-Identifier: Apache-2.0
"""The configuration space of one PCI function (PCI Local Bus 3.0, chapter 6).

A `PciFunction` is a type 0 header, up to six memory base address registers (BARs) and a list of
capabilities. The header is a register table; the 256 bytes are a small `Bus` on which the header
and every capability are mapped, so that a configuration access of any size and alignment is safe,
and unmapped bytes read as 0.

A BAR is *decoded* while the function's memory space is enabled and its address is one that the
`BarPlacement` accepts. The owner of the memory map (`devices.pci.host_bridge.PciBus`) implements
it: it keeps BARs off RAM and interrupt controllers, and maps the BAR's handler on the MMIO bus. A
refused BAR keeps its address and is tried again at the next write to the command register or to a
BAR. Listeners of `bar_moved` are called with (index, gpa) after each change; gpa is None
when the BAR is no longer decoded.

A capability with behaviour has `read` and `write` handlers for its body, whose offset 0 is the
byte after the next pointer:

    offset = function.add_capability(0x11, bytes(10), read=table.read, write=table.write)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple, Protocol

from devices.bus import Bus
from devices.listeners import Listeners
from devices.pci.capability import Capability
from devices.ports import BusDevice, InterruptLine, Tracer
from devices.registers import Access, Register, RegisterTable
from devices.state import Fields, Payload, Restore

CONFIG_SPACE_BYTES = 256
"""Size of the configuration space of conventional PCI."""
BAR_COUNT = 6
"""BARs of a type 0 header; one of 64 bits takes two."""

COMMAND_MEMORY_SPACE = 1 << 1
COMMAND_BUS_MASTER = 1 << 2
COMMAND_INTX_DISABLE = 1 << 10
"""Bits of the command register that a driver can set (6.2.2)."""
INTERRUPT_LINE_OFFSET = 0x3C
"""Offset of the byte in which firmware leaves the interrupt that INTx is wired to (6.2.4)."""
STATUS_INTERRUPT = 1 << 3
STATUS_CAPABILITIES = 1 << 4
"""Bits of the status register (6.2.3)."""

_BAR_64BIT = 0b100  # bits 2:1 of a memory BAR: may lie anywhere in 64-bit space
_BAR_PREFETCHABLE = 1 << 3
_SMALLEST_BAR_BYTES = 16
_FIRST_CAPABILITY = 0x40


class BarPlacement(Protocol):
    """Decides whether a BAR may be decoded at the address that the guest has programmed."""

    def place(self, gpa: int, size_bytes: int, handler: BusDevice) -> bool:
        """Decode [gpa, gpa + size_bytes) with `handler`; return False if that is not allowed."""

    def remove(self, gpa: int) -> None:
        """Stop decoding the BAR at `gpa`."""


class _Bar:
    def __init__(self, index: int, size_bytes: int, handler: BusDevice, flags: int) -> None:
        self.index = index
        self.size_bytes = size_bytes
        self.handler = handler
        self.flags = flags
        self.address = 0  # as the guest programmed it
        self.gpa: int | None = None  # where it is decoded


class BarState(NamedTuple):
    """BAR `number` of `size_bytes`: its `address` as programmed, and if it is `decoded` there."""

    number: int
    size_bytes: int
    address: int
    decoded: bool


class PciFunction:
    """One function: header, BARs, capabilities and INTx; a `Stateful` part.

    `class_code` has 24 bits (base class, subclass, interface). `interrupt_pin` is 0 for none, 1 for
    INTA#. `name` identifies the function in traces, and accesses to the header's registers are
    events of `tracer`. `bus_master_set` is called when a write to the command register leaves bus
    mastering on.
    """

    def __init__(
        self,
        *,
        vendor_id: int,
        device_id: int,
        subsystem_vendor_id: int = 0,
        subsystem_id: int = 0,
        class_code: int,
        revision: int = 0,
        interrupt_pin: int = 0,
        name: str,
        tracer: Tracer | None = None,
    ) -> None:
        self.name = name
        self.bar_moved: Listeners[int, int | None] = Listeners()
        """Called with (index, gpa) after a BAR has changed; gpa is None if it is not decoded."""
        self.bus_master_set: Listeners[[]] = Listeners()
        self.placement: BarPlacement | None = None
        """Decides about the addresses of BARs; None accepts every address."""
        self.intx_line: InterruptLine | None = None
        """The line that the interrupt pin drives; None if it is not wired."""
        self.bus_master_enabled = False
        """True while the function may access memory, which includes sending MSIs (6.2.2)."""
        self._interrupt_asserted = False
        self._line_level = False
        self._bars: dict[int, _Bar] = {}
        self._capabilities: list[Capability] = []
        self._next_capability = _FIRST_CAPABILITY
        read_only = partial(Register, access=Access.RO)
        self._header = RegisterTable(
            f"{name}.pci_config",
            [
                read_only("vendor_id", 0x00, 2, reset=vendor_id),
                read_only("device_id", 0x02, 2, reset=device_id),
                Register(
                    "command",
                    0x04,
                    2,
                    writable=COMMAND_MEMORY_SPACE | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE,
                    write=self._command_written,
                ),
                read_only("status", 0x06, 2, read=self._read_status),
                read_only("revision_id", 0x08, 1, reset=revision),
                read_only("class_code", 0x09, 3, reset=class_code),
                Register("cache_line_size", 0x0C, 1),
                *self._bar_registers(),
                read_only("subsystem_vendor_id", 0x2C, 2, reset=subsystem_vendor_id),
                read_only("subsystem_id", 0x2E, 2, reset=subsystem_id),
                read_only("capabilities_pointer", 0x34, 1, read=self._read_capabilities_pointer),
                Register("interrupt_line", INTERRUPT_LINE_OFFSET, 1),
                read_only("interrupt_pin", 0x3D, 1, reset=interrupt_pin),
            ],
            tracer=tracer,
        )
        self._config = Bus(f"{name}.config", unclaimed_byte=0)
        self._config.map(0, _FIRST_CAPABILITY, self._header)

    # --- Building ---------------------------------------------------------------------------
    def add_bar(
        self,
        index: int,
        size_bytes: int,
        handler: BusDevice,
        *,
        is_64bit: bool = True,
        prefetchable: bool = False,
    ) -> None:
        """Add memory BAR `index` (a 64-bit one also takes register `index` + 1).

        `size_bytes` is a power of two, at least 16. Raises ValueError for a bad size or an index
        that is out of range or taken.
        """
        if size_bytes < _SMALLEST_BAR_BYTES or size_bytes & (size_bytes - 1):
            raise ValueError(f"{self.name}: {size_bytes} bytes is not the size of a BAR")
        slots = {index, index + 1} if is_64bit else {index}
        if not slots <= set(range(BAR_COUNT)) - self._bar_slots():
            raise ValueError(f"{self.name}: BAR {index} is taken or does not exist")
        flags = _BAR_64BIT * is_64bit | _BAR_PREFETCHABLE * prefetchable
        self._bars[index] = _Bar(index, size_bytes, handler, flags)

    def add_capability(
        self,
        cap_id: int,
        body: bytes,
        *,
        writable_mask: bytes = b"",
        read: Callable[[int, int], int] | None = None,
        write: Callable[[int, int, int], None] | None = None,
        peek: Callable[[], bytes] | None = None,
    ) -> int:
        """Append a capability and return its offset in configuration space.

        `body` is what follows the id and the next pointer, and its reset value. The guest can
        change the bits set in `writable_mask` (one byte for each of `body`, shorter means zeros).
        `read(offset, size)` and `write(offset, size, value)`, when given, serve accesses to the
        body instead; sizes are 1, 2 or 4. `peek()` then returns the body without side effects.
        Raises ValueError when the space is full.
        """
        offset = self._next_capability
        end = offset + 2 + len(body)
        if end > CONFIG_SPACE_BYTES:
            raise ValueError(f"{self.name}: no room for capability {cap_id:#x}")
        capability = Capability(offset, cap_id, body, writable_mask, read, write, peek)
        self._config.map(offset, 2, capability.header)
        if body:
            self._config.map(offset + 2, len(body), capability)
        if self._capabilities:
            self._capabilities[-1].link(offset)
        self._capabilities.append(capability)
        self._next_capability = (end + 3) & ~3  # 6.7: capabilities are DWORD aligned
        return offset

    # --- Configuration accesses -------------------------------------------------------------
    def config_read(self, offset: int, size: int) -> int:
        """Read `size` bytes of configuration space; unmapped bytes read as 0."""
        return self._config.read(offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Write `size` bytes of configuration space; read-only bits do not change."""
        self._config.write(offset, size, value)

    # --- For people ---------------------------------------------------------------------------
    @property
    def header(self) -> RegisterTable:
        """The registers of the header."""
        return self._header

    @property
    def bars(self) -> list[BarState]:
        """The BARs as they are at the moment."""
        return [
            BarState(bar.index, bar.size_bytes, bar.address, bar.gpa is not None)
            for bar in self._bars.values()
        ]

    @property
    def capabilities(self) -> list[Capability]:
        """All capabilities, in the order of their list."""
        return list(self._capabilities)

    def peek_config(self) -> bytes:
        """Return the configuration space, without the side effects of a read."""
        data = bytearray(CONFIG_SPACE_BYTES)
        header = self._header.peek_bytes()
        data[: len(header)] = header
        for capability in self._capabilities:
            whole = capability.header.peek_bytes() + capability.peek()
            data[capability.offset : capability.offset + len(whole)] = whole
        return bytes(data)

    # --- Device side ------------------------------------------------------------------------
    def bar_gpa(self, index: int) -> int | None:
        """Return the address at which BAR `index` is decoded, or None."""
        return self._bars[index].gpa

    def set_interrupt_level(self, level: bool) -> None:
        """Assert or deassert INTx: sets the status bit, and the pin unless INTx is disabled."""
        self._interrupt_asserted = level
        self._drive_intx()

    def _drive_intx(self) -> None:
        disabled = self._header["command"] & COMMAND_INTX_DISABLE
        level = self._interrupt_asserted and not disabled
        if level != self._line_level and self.intx_line is not None:
            self.intx_line.set_level(level)
        self._line_level = level

    # --- Saved state ------------------------------------------------------------------------
    STATE_VERSION = 1

    @property
    def STATE_KIND(self) -> str:
        """The kind of the saved state, one for each function."""
        return self.name

    def save_state(self) -> Payload:
        """Return the header and the BARs; owners of capabilities save those."""
        return {
            "vendor_id": self._header["vendor_id"],
            "device_id": self._header["device_id"],
            "registers": self._header.save_state(),
            "bars": [bar.address for bar in self._bars.values()],
            "decoded": [bar.index for bar in self._bars.values() if bar.gpa is not None],
        }

    def check_state(self, fields: Fields) -> Restore:
        """Check the state; return the function that applies it and decodes the BARs again.

        Of two BARs at one address the one that was decoded is decoded again.
        """
        for name in ("vendor_id", "device_id"):
            fields.same(name, self._header[name])
        restore_header = self._header.check_state(fields.part("registers"))
        bars = list(self._bars.values())
        addresses = fields.numbers("bars", count=len(bars))
        for bar, address in zip(bars, addresses, strict=True):
            if address & bar.size_bytes - 1 or address >> (64 if bar.flags & _BAR_64BIT else 32):
                raise fields.error("bars", f"cannot have BAR {bar.index} at {address:#x}")
        decoded = fields.numbers("decoded", at_most=len(bars), below=BAR_COUNT)
        first = sorted(bars, key=lambda bar: bar.index not in decoded)

        def restore() -> None:
            restore_header()
            for bar, address in zip(bars, addresses, strict=True):
                bar.address = address
            self._update_bus_master()
            self._drive_intx()
            self._update_decoding(first)

        return restore

    def restore_state(self, fields: Fields) -> None:
        """Restore as `Stateful.restore_state`."""
        restore = self.check_state(fields)
        fields.done()
        restore()

    # --- Header registers -------------------------------------------------------------------
    def _command_written(self, _value: int) -> None:
        self._update_bus_master()
        self._drive_intx()
        self._update_decoding()
        if self.bus_master_enabled:
            self.bus_master_set()

    def _update_bus_master(self) -> None:
        self.bus_master_enabled = bool(self._header["command"] & COMMAND_BUS_MASTER)

    def _read_status(self) -> int:
        return STATUS_INTERRUPT * self._interrupt_asserted | STATUS_CAPABILITIES * bool(
            self._capabilities
        )

    def _read_capabilities_pointer(self) -> int:
        return self._capabilities[0].offset if self._capabilities else 0

    # --- BARs -------------------------------------------------------------------------------
    def _bar_registers(self) -> list[Register]:
        return [
            Register(
                f"bar{slot}",
                0x10 + 4 * slot,
                4,
                read=partial(self._read_bar, slot),
                write=partial(self._write_bar, slot),
            )
            for slot in range(BAR_COUNT)
        ]

    def _bar_slots(self) -> set[int]:
        return {slot for slot in range(BAR_COUNT) if self._bar_of(slot) is not None}

    def _bar_of(self, slot: int) -> _Bar | None:
        """Return the BAR that register `slot` is the low or the high half of."""
        bar = self._bars.get(slot)
        if bar is None:
            below = self._bars.get(slot - 1)
            if below is not None and below.flags & _BAR_64BIT:
                bar = below
        return bar

    def _read_bar(self, slot: int) -> int:
        bar = self._bar_of(slot)
        if bar is None:
            return 0
        if slot != bar.index:
            return bar.address >> 32
        return bar.address & 0xFFFF_FFFF | bar.flags

    def _write_bar(self, slot: int, value: int) -> None:
        bar = self._bar_of(slot)
        if bar is None:
            return
        if slot != bar.index:
            address = value << 32 | bar.address & 0xFFFF_FFFF
        else:
            address = bar.address & ~0xFFFF_FFFF | value
        # 6.2.5.1: address bits below the size are hardwired to 0, so software that writes all
        # ones reads back the size.
        bar.address = address & ~(bar.size_bytes - 1)
        self._update_decoding()

    def _update_decoding(self, bars: Iterable[_Bar] | None = None) -> None:
        """Update the decoding of `bars`, or all, to the command register and their addresses."""
        enabled = self._header["command"] & COMMAND_MEMORY_SPACE
        bars = self._bars.values() if bars is None else bars
        moving = [bar for bar in bars if bar.gpa != (bar.address if enabled else None)]
        before = [bar.gpa for bar in moving]
        for bar in moving:  # remove all before placing any: two BARs may swap addresses
            if bar.gpa is not None and self.placement is not None:
                self.placement.remove(bar.gpa)
            bar.gpa = None
        for bar in moving if enabled else ():
            if self.placement is None or self.placement.place(
                bar.address, bar.size_bytes, bar.handler
            ):
                bar.gpa = bar.address
        for bar, gpa in zip(moving, before, strict=True):
            if bar.gpa != gpa:
                self.bar_moved(bar.index, bar.gpa)
