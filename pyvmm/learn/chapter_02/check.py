# SPDX-License-Identifier: Apache-2.0
"""Check of chapter 2: the driver places BARs of both widths, and finds the right structures.

The first device is a real one, whose registers have to answer. The second is a PCI function with
everything that a driver may meet: BARs of 32 bits, an upper half that firmware set, capabilities
of other kinds, of a reserved type and in a reserved BAR, and a structure that appears twice.
"""

from __future__ import annotations

from typing import Any

from devices.pci.config_space import PciFunction
from devices.registers import RegisterTable
from devices.rng.device import RngDevice
from devices.testing import AnonymousRam, Board, FakeTimers, RecordingTracer
from pyvmm.learn.checking import expect

BARS_GPA = 0xC000_0000
COMMON_CFG, NOTIFY_CFG, NUM_QUEUES = 1, 2, 18
REAL_STRUCTURES = {1: (0, 0), 2: (0, 0x3000), 3: (0, 0x1000)}
"""Type: BAR and offset, of the device of this repository."""


def check(exercise: Any) -> None:
    """Check `PciDriver` of the module `exercise`."""
    _check_device(exercise)
    _check_function(exercise)


def _check_device(exercise: Any) -> None:
    tracer = RecordingTracer()
    board = Board(RngDevice(AnonymousRam().memory, FakeTimers(), tracer), tracer)
    driver = exercise.PciDriver(board.function)
    bars = driver.assign_bars(BARS_GPA)
    _expect_addresses(board.function, bars, {0: 64, 2: 64})
    structures = driver.find_structures()
    for cfg_type, (bar, offset) in REAL_STRUCTURES.items():
        found = structures.get(cfg_type)
        expect(
            found is not None and (found[0], found[1]) == (bar, offset),
            f"The structure of type {cfg_type} lies in BAR {bar} at {offset:#x}, and the driver has"
            f" found {found} (VIRTIO 1.2, 4.1.4).",
        )
    board.function.config_write(4, 2, 0b110)
    place = structures[COMMON_CFG]
    queues = board.mmio.read(bars[place[0]] + place[1] + NUM_QUEUES, 2)
    expect(
        queues == 1,
        f"num_queues of the device, read where the driver has found it, is {queues} instead of 1:"
        " no register answers at that address.",
    )


def _check_function(exercise: Any) -> None:
    function = _make_function()
    driver = exercise.PciDriver(function)
    bars = driver.assign_bars(BARS_GPA)
    _expect_addresses(function, bars, {0: 32, 1: 64, 4: 32})
    structures = {key: tuple(value)[:2] for key, value in driver.find_structures().items()}
    expected = {COMMON_CFG: (1, 0x100), NOTIFY_CFG: (4, 0)}
    expect(
        structures == expected,
        f"A device has the structures {expected} (type: BAR, offset), and the driver has found"
        f" {structures}. It ignores capabilities of reserved types and BARs (VIRTIO 1.2, 4.1.4.1),"
        " and prefers the first of several structures of one type.",
    )


def _make_function() -> PciFunction:
    function = PciFunction(vendor_id=0x1AF4, device_id=0x1044, class_code=0xFF0000, name="example")
    empty = RegisterTable("bar", [])
    function.add_bar(0, 0x1000, empty, is_64bit=False)
    function.add_bar(1, 0x10000, empty)
    function.add_bar(4, 0x100, empty, is_64bit=False)
    function.config_write(0x18, 4, 1)  # firmware had put BAR 1 above 4 GiB
    function.add_capability(0x01, bytes(6))  # power management
    for cfg_type, bar, offset in (
        (0x77, 0, 0x40),
        (COMMON_CFG, 1, 0x100),
        (NOTIFY_CFG, 7, 0),
        (NOTIFY_CFG, 4, 0),
        (COMMON_CFG, 4, 0x80),
    ):
        body = (
            bytes([16, cfg_type, bar, 0, 0, 0])
            + offset.to_bytes(4, "little")
            + bytes([64, 0, 0, 0])
        )
        function.add_capability(0x09, body)
    return function


def _expect_addresses(function: PciFunction, bars: dict[int, int], widths: dict[int, int]) -> None:
    """Fail unless the function's BARs, of `widths` bits, have the addresses `bars`."""
    expect(
        sorted(bars) == sorted(widths),
        f"The device has the BARs {sorted(widths)}, and the driver has found {sorted(bars)}. Bits"
        " 2:1 of a memory BAR are 2 if it has 64 bits: then the next register is its upper half,"
        " and no BAR; otherwise the next register is the next BAR (PCI 3.0, 6.2.5.1).",
    )
    for index, width in widths.items():
        low = function.config_read(0x10 + 4 * index, 4) & ~0xF
        high = function.config_read(0x14 + 4 * index, 4) if width == 64 else 0
        address = high << 32 | low
        expect(
            address == bars[index],
            f"The driver believes that BAR {index}, which has {width} bits, is at"
            f" {bars[index]:#x}, and its registers say {address:#x}. Both halves of an address of"
            " 64 bits have to be written, whatever firmware has left in them (PCI 3.0, 6.2.5.1).",
        )
    ends = sorted((bars[index], index) for index in bars)
    expect(
        len({gpa for gpa, _ in ends}) == len(ends) and all(gpa >= BARS_GPA for gpa, _ in ends),
        f"BARs overlap or lie below {BARS_GPA:#x}: {bars}.",
    )
