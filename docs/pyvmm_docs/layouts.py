# SPDX-License-Identifier: Apache-2.0
"""Registers, capabilities, BARs and features of devices, for `{bit-layout}` and `{values}`.

Each function builds a device as a machine does, with recorders of the device test kit around it,
and returns its fields in the order of their offsets.
"""

from __future__ import annotations

from devices.balloon.dialects import BITMAP, HYBRID, RANGES, STANDARD, Dialect
from devices.balloon.records import HEADER, RecordHeader, read_header
from devices.balloon.stat_tags import STATISTICS
from devices.pci.config_space import PciFunction
from devices.registers import RegisterTable
from devices.testing.balloon.driver import BalloonDriver
from devices.testing.board import Board
from devices.virtio import features, pci_transport
from pyvmm_docs.bit_layout import Field
from pyvmm_docs.values import Value

CAP_POINTER, CAP_ID_MSIX = 0x34, 0x11
_STRUCTURES = {
    pci_transport.CAP_COMMON_CFG: "common configuration",
    pci_transport.CAP_NOTIFY_CFG: "notification",
    pci_transport.CAP_ISR_CFG: "ISR status",
    pci_transport.CAP_DEVICE_CFG: "device configuration",
    5: "PCI configuration access",
}
"""By `cfg_type` of struct virtio_pci_cap (VIRTIO 1.2, 4.1.4)."""


def balloon_board(dialect: Dialect = STANDARD) -> Board:
    """Return a board with a balloon that offers every feature of its dialect."""
    return BalloonDriver(dialect, offered=dialect.features.known).board


def registers_of(table: RegisterTable) -> list[Field]:
    """Return the registers of a table."""
    return [Field(row.offset, row.size, row.name) for row in table]


def balloon_config() -> list[Field]:
    """Return the configuration space of a standard balloon."""
    return registers_of(balloon_board().device.config)


def common_config() -> list[Field]:
    """Return the common configuration structure."""
    return registers_of(balloon_board().transport.common.registers)


def msix_entry() -> list[Field]:
    """Return an entry of the MSI-X table."""
    fields = registers_of(balloon_board().transport.msix.table)
    return [field._replace(name=field.name.removesuffix("0")) for field in fields[:4]]


def capabilities(function: PciFunction) -> list[tuple[int, int, int]]:
    """Return (offset, id, virtio's cfg_type or 0) of each capability, in the order of the list."""
    found = []
    offset = function.config_read(CAP_POINTER, 1)
    while offset:
        cap_id = function.config_read(offset, 1)
        virtio = cap_id == pci_transport.CAP_ID_VENDOR
        found.append((offset, cap_id, function.config_read(offset + 3, 1) if virtio else 0))
        offset = function.config_read(offset + 1, 1)
    return found


def capability_list() -> list[Field]:
    """Return the capabilities of a balloon in PCI configuration space."""
    function = balloon_board().function
    fields = []
    for offset, cap_id, cfg_type in capabilities(function):
        if cap_id == CAP_ID_MSIX:
            fields.append(Field(offset, 12, "MSI-X"))
        else:
            length = function.config_read(offset + 2, 1)
            fields.append(Field(offset, length, _STRUCTURES[cfg_type]))
    return fields


def virtio_bar() -> list[Field]:
    """Return the structures in BAR 0, as its capabilities locate them."""
    function = balloon_board().function
    fields = [
        Field(
            function.config_read(offset + 8, 4),
            function.config_read(offset + 12, 4),
            _STRUCTURES[cfg_type],
        )
        for offset, _, cfg_type in capabilities(function)
        if cfg_type in (1, 2, 3, 4)
    ]
    return sorted(fields, key=lambda field: int(field.offset))


def standard_features() -> list[Field]:
    """Return the feature bits of the standard dialect, with those of every device."""
    return _features(STANDARD)


def bitmap_features() -> list[Field]:
    """Return the feature bits of the bitmap dialect, with those of every device."""
    return _features(BITMAP)


def hybrid_features() -> list[Field]:
    """Return the feature bits of the hybrid dialect, with those of every device."""
    return _features(HYBRID)


def ranges_features() -> list[Field]:
    """Return the feature bits of the ranges dialect, with those of every device."""
    return _features(RANGES)


def record_header() -> list[Field]:
    """Return the fields of the header before records, by the bits that change them."""
    bits: dict[str, list[int]] = {name: [] for name in RecordHeader._fields}
    for bit in range(64):
        fields = read_header(HEADER.pack(1 << bit))._asdict()
        bits[next(name for name, value in fields.items() if value)].append(bit)
    return [Field(each[0], len(each), name) for name, each in bits.items()]


def _features(dialect: Dialect) -> list[Field]:
    offered = balloon_board(dialect).device.offered
    names = dialect.features.names
    return [
        Field(bit, 1, features.names(1 << bit, names)) for bit in range(64) if offered >> bit & 1
    ]


def statistics() -> list[Value]:
    """Return the memory statistics by tag."""
    return [
        Value(tag, each.name, f"{each.meaning} ({'bytes' if each.is_bytes else 'events'})")
        for tag, each in enumerate(STATISTICS)
    ]
