# SPDX-License-Identifier: Apache-2.0
"""The PCI configuration access capability (VIRTIO 1.2, section 4.1.4.9).

A window for firmware that cannot reach a BAR: the driver writes bar, offset and length (1, 2 or 4)
into the capability itself, and accesses to `pci_cfg_data` become accesses to that BAR. Only
aligned accesses within the virtio structures have an effect; for other values reads return 0 and
writes are ignored.

Only `read` reads the BAR. Otherwise the register table holds the data bytes, so that a write of one
byte of them does not read the BAR, which has side effects.
"""

from __future__ import annotations

from devices.ports import BusDevice
from devices.registers import Access, Register, RegisterTable
from devices.state import Fields, Payload, Restore

BODY_BYTES = 18
"""struct virtio_pci_cfg_cap without cap_vndr and cap_next."""

_DATA = 14
_CFG_TYPE_PCI_CFG = 5


class PciConfigWindow:
    """The body of the capability as a `BusDevice`: a window into BAR `bar`, which is `target`."""

    def __init__(self, bar: int, target: BusDevice, target_bytes: int) -> None:
        self._bar = bar
        self._target = target
        self._target_bytes = target_bytes
        self._fields = RegisterTable(
            "virtio_pci_cfg_cap",
            [
                Register("cap_len", 0, 1, Access.RO, reset=BODY_BYTES + 2),
                Register("cfg_type", 1, 1, Access.RO, reset=_CFG_TYPE_PCI_CFG),
                Register("bar", 2, 1),
                Register("offset", 6, 4),
                Register("length", 10, 4),
                Register("pci_cfg_data", _DATA, 4, write=self._store),
            ],
        )

    def save_state(self) -> Payload:
        """Return the registers, with the data last read or written."""
        return self._fields.save_state()

    def check_state(self, fields: Fields) -> Restore:
        """Check that a driver could have programmed it; the BAR is not accessed."""
        return self._fields.check_state(fields)

    def peek(self) -> bytes:
        """Return the capability with the data last read or written; the BAR is not accessed."""
        return self._fields.peek_bytes()

    def read(self, offset: int, size: int) -> int:
        """Read the capability; a read of the data field reads the BAR first."""
        if offset + size > _DATA:
            length = self._length()
            start = self._fields["offset"]
            self._fields["pci_cfg_data"] = self._target.read(start, length) if length else 0
        return self._fields.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the capability; a write to the data field writes the BAR, too."""
        self._fields.write(offset, size, value)

    def _store(self, data: int) -> None:
        """Write the first cap.length bytes of pci_cfg_data to the BAR (4.1.4.9.1)."""
        length = self._length()
        if length:
            self._target.write(self._fields["offset"], length, data & (1 << 8 * length) - 1)

    def _length(self) -> int:
        """Return the size of the programmed access, or 0 if it is invalid (4.1.4.9.2)."""
        length, offset = self._fields["length"], self._fields["offset"]
        inside = self._fields["bar"] == self._bar and offset + length <= self._target_bytes
        return length if length in (1, 2, 4) and inside and offset % length == 0 else 0
