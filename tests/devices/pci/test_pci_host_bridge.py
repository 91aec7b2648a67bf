# SPDX-License-Identifier: Apache-2.0
"""Configuration mechanism 1 as operating systems probe and use it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.bus import Bus
from devices.pci.config_space import PciFunction
from devices.pci.host_bridge import (
    ECAM_BYTES_PER_BUS,
    ConfigMechanism1,
    EnhancedConfig,
    PciBus,
)

ADDRESS, DATA = 0xCF8, 0xCFC


class ConfigPorts:
    """The configuration ports of a bus with one extra function at 00:03.0."""

    def __init__(self) -> None:
        self.pci = PciBus(Bus("mmio"), [])
        self.function = PciFunction(
            vendor_id=0x1234, device_id=0x5678, class_code=0x020000, name="extra"
        )
        self.pci.add(3, self.function)
        self.bus = Bus("pio")
        self.resets: list[str] = []
        self.bus.map(ADDRESS, 8, ConfigMechanism1(self.pci, lambda: self.resets.append("reset")))

    def select(self, bus: int, device: int, function: int, register: int) -> None:
        self.bus.write(
            ADDRESS, 4, 1 << 31 | bus << 16 | device << 11 | function << 8 | register & 0xFC
        )


def test_linux_detects_configuration_mechanism_1() -> None:
    """The probe: a byte to 0xCFB must not disturb the latch, which must hold what is written."""
    ports = ConfigPorts()
    ports.bus.write(0xCFB, 1, 1)
    before = ports.bus.read(ADDRESS, 4)
    ports.bus.write(ADDRESS, 4, 0x8000_0000)
    assert ports.bus.read(ADDRESS, 4) == 0x8000_0000
    assert ports.bus.read(DATA + 2, 2) == 0x0008  # device id of the host bridge
    ports.select(0, 0, 0, 0x08)
    assert ports.bus.read(DATA + 2, 2) == 0x0600  # class: host bridge
    ports.bus.write(ADDRESS, 4, before)
    assert ports.bus.read(ADDRESS, 4) == before == 0


def test_the_host_bridge_has_no_subsystem_no_revision_and_no_interrupt_pin() -> None:
    read = ConfigPorts().pci.host_bridge.config_read
    assert (read(0x00, 4), read(0x08, 4)) == (0x0008_1B36, 0x0600_0000)
    assert (read(0x2C, 4), read(0x3C, 4)) == (0, 0)


def test_reserved_latch_bits_read_as_zero() -> None:
    ports = ConfigPorts()
    ports.bus.write(ADDRESS, 4, 0xFFFF_FFFF)
    assert ports.bus.read(ADDRESS, 4) == 0x80FF_FFFC


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (3, 1), (0, 2), (2, 2), (1, 2)])
def test_narrow_accesses_do_not_reach_the_latch(offset: int, size: int) -> None:
    ports = ConfigPorts()
    ports.select(0, 3, 0, 0)
    ports.bus.write(ADDRESS + offset, size, 0)
    assert ports.bus.read(ADDRESS + offset, size) == (1 << (8 * size)) - 1
    assert ports.bus.read(ADDRESS, 4) == 0x8000_1800


def test_bit_2_of_the_reset_control_register_resets() -> None:
    """As Linux does with reboot=pci: bit 1 first, then the bits of a full reset."""
    ports = ConfigPorts()
    kept = ports.bus.read(0xCF9, 1) & ~0x0E
    ports.bus.write(0xCF9, 1, kept | 2)
    assert ports.resets == []
    ports.bus.write(0xCF9, 1, kept | 0x0E)
    assert ports.resets == ["reset"]


@pytest.mark.parametrize(("port", "size"), [(0xCF8, 4), (0xCF8, 2), (0xCF9, 2), (0xCF9, 4)])
def test_only_a_byte_reaches_the_reset_control_register(port: int, size: int) -> None:
    ports = ConfigPorts()
    ports.bus.write(port, size, (1 << 8 * size) - 1)
    assert ports.resets == []


@pytest.mark.parametrize(
    ("offset", "size", "expected"),
    [(0, 4, 0x56781234), (0, 2, 0x1234), (2, 2, 0x5678), (1, 2, 0x7812), (3, 1, 0x56)],
)
def test_data_ports_select_bytes_of_the_register(offset: int, size: int, expected: int) -> None:
    ports = ConfigPorts()
    ports.select(0, 3, 0, 0)
    assert ports.bus.read(DATA + offset, size) == expected


def test_narrow_data_writes_change_only_their_bytes() -> None:
    ports = ConfigPorts()
    ports.select(0, 3, 0, 0x3C)
    ports.bus.write(DATA + 1, 1, 0xFF)  # the interrupt pin is read only
    ports.bus.write(DATA, 1, 0x0B)
    assert ports.function.config_read(0x3C, 4) == 0x0B


@pytest.mark.parametrize("where", [(0, 1, 0), (0, 3, 1), (0, 31, 7), (1, 3, 0), (255, 0, 0)])
def test_absent_functions_read_all_ones(where: tuple[int, int, int]) -> None:
    ports = ConfigPorts()
    ports.select(*where, 0)
    ports.bus.write(DATA, 4, 0)
    assert ports.bus.read(DATA, 4) == 0xFFFF_FFFF
    assert ports.bus.read(DATA, 1) == 0xFF


def test_no_function_is_selected_while_the_enable_bit_is_clear() -> None:
    ports = ConfigPorts()
    ports.bus.write(ADDRESS, 4, 0x1800)
    assert ports.bus.read(DATA, 4) == 0xFFFF_FFFF


def test_accesses_across_the_latch_and_the_data_are_split() -> None:
    ports = ConfigPorts()
    ports.select(0, 3, 0, 0)
    assert ports.bus.read(0xCFA, 4) == 0x1234_FFFF
    assert ports.bus.read(ADDRESS, 8) == 0x5678_1234_FFFF_FFFF
    assert ports.bus.read(0xCFE, 4) == 0xFFFF_5678  # beyond the last port: unclaimed
    ports.bus.write(0xCFA, 4, 0)
    assert ports.bus.read(ADDRESS, 4) == 0x8000_1800


@pytest.mark.parametrize("before", [1, 2, 3])
def test_a_write_across_the_latch_and_the_data_reaches_the_data_byte_by_byte(before: int) -> None:
    """Its first `before` bytes fall on the latch and are dropped, the next is register 0x3C."""
    ports = ConfigPorts()
    ports.select(0, 3, 0, 0x3C)
    ports.bus.write(DATA - before, 4, 0xA5 << 8 * before | (1 << 8 * before) - 1)
    assert ports.function.config_read(0x3C, 1) == 0xA5, "interrupt line"
    assert ports.bus.read(ADDRESS, 4) == 0x8000_183C


@given(
    st.lists(
        st.tuples(
            st.integers(ADDRESS - 8, DATA + 8),
            st.sampled_from([1, 2, 4]),
            st.integers(0, 2**32 - 1) | st.integers(0x8000_1800, 0x8000_18FF),
        ),
        max_size=40,
    )
)
def test_hostile_port_accesses_are_harmless(steps: list[tuple[int, int, int]]) -> None:
    ports = ConfigPorts()
    for port, size, value in steps:
        ports.bus.write(port, size, value & (1 << (8 * size)) - 1)
        assert 0 <= ports.bus.read(port, size) < 1 << (8 * size)
    assert ports.function.config_read(0, 4) == 0x56781234


@pytest.mark.parametrize("device", [-1, 0, 3, 32])
def test_taken_and_impossible_device_numbers_are_refused(device: int) -> None:
    ports = ConfigPorts()
    with pytest.raises(ValueError, match="taken or does not exist"):
        ports.pci.add(device, ports.function)


# --- ECAM (PCI Express 3.0, 7.2.2) ----------------------------------------------------------------
ECAM_FUNCTION = 3 << 15


@given(register=st.integers(0, 0xFFF), size=st.sampled_from([1, 2, 4]))
def test_ecam_reads_equal_port_reads(register: int, size: int) -> None:
    ports = ConfigPorts()
    ecam = EnhancedConfig(ports.pci)
    for device in (0, 3, 4):
        expected = (1 << (8 * size)) - 1
        if register + size <= 256 and register % 4 + size <= 4:
            ports.select(0, device, 0, register)
            expected = ports.bus.read(DATA + register % 4, size)
        elif register + size <= 256:
            continue  # not possible in one port access
        assert ecam.read(device << 15 | register, size) == expected


def test_ecam_writes_reach_configuration_space() -> None:
    ports = ConfigPorts()
    ecam = EnhancedConfig(ports.pci)
    ecam.write(ECAM_FUNCTION | 0x04, 2, 0xFFFF)
    ecam.write(ECAM_FUNCTION | 0x3C, 1, 0x5A)
    ports.select(0, 3, 0, 0x04)
    assert ports.bus.read(DATA, 2) == 0x0406  # memory space, bus master, no INTx
    ports.select(0, 3, 0, 0x3C)
    assert ports.bus.read(DATA, 1) == 0x5A


@pytest.mark.parametrize("function", range(1, 8))
@pytest.mark.parametrize("device", [0, 3])
def test_ecam_has_function_0_only(device: int, function: int) -> None:
    ecam = EnhancedConfig(ConfigPorts().pci)
    assert ecam.read(device << 15 | function << 12, 4) == 0xFFFF_FFFF


@given(offset=st.integers(0, ECAM_BYTES_PER_BUS - 8), size=st.integers(1, 8))
def test_hostile_ecam_accesses_are_harmless(offset: int, size: int) -> None:
    ecam = EnhancedConfig(ConfigPorts().pci)
    ecam.write(offset, size, (1 << (8 * size)) - 1)
    assert 0 <= ecam.read(offset, size) < 1 << (8 * size)
    if offset >> 15 not in (0, 3) or offset & 0x7F00:
        assert ecam.read(offset, size) == (1 << (8 * size)) - 1
