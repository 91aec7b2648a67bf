# SPDX-License-Identifier: Apache-2.0
"""Saving and restoring the devices of a PC's I/O ports, the host bridge and a register table."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.bus import Bus
from devices.legacy.acpi_pm import AcpiPm
from devices.legacy.rtc import Rtc
from devices.pci.host_bridge import ConfigMechanism1, PciBus
from devices.registers import Access, Register, RegisterTable
from devices.state import Fields, Payload, StateError, Stateful
from devices.testing.states import restores, transfer_state
from devices.testing.strategies import corrupted

NOON = 43_200.0


def rtc(now: float = NOON, low: int = 3 << 30) -> Rtc:
    return Rtc(lambda: now, low, 0)


def test_a_restored_rtc_follows_the_new_hosts_clock() -> None:
    old, new = rtc(), rtc(now=NOON + 3600, low=1 << 30)
    old.write(0, 1, 0x50)
    old.write(1, 1, 0xA5)
    old.write(0, 1, 0x04)
    transfer_state(old, new)
    assert (old.read(1, 1), new.read(1, 1)) == (0x12, 0x13)  # the index was saved
    new.write(0, 1, 0x50)
    assert new.read(1, 1) == 0xA5


def test_a_state_with_another_rtc_status_register_is_refused() -> None:
    memory = bytearray(rtc().save_state()["memory"])  # type: ignore[arg-type]
    memory[0x0D] ^= 0x80
    with pytest.raises(StateError, match="memory differs in a read-only status register"):
        rtc().restore_state(Fields("rtc", {"registers": {"index": 0}, "memory": bytes(memory)}))


def acpi_pm() -> AcpiPm:
    return AcpiPm(lambda: None, lambda: None)


def test_enabled_acpi_events_are_restored() -> None:
    old, new = acpi_pm(), acpi_pm()
    old.write(2, 2, 0x0120)
    transfer_state(old, new)
    assert new.read(2, 2) == 0x0120


def pci_ports() -> ConfigMechanism1:
    return ConfigMechanism1(PciBus(Bus("mmio"), []), lambda: None)


def test_the_selected_pci_register_is_restored() -> None:
    old, new = pci_ports(), pci_ports()
    old.write(0, 4, 0x8000_0008)
    transfer_state(old, new)
    assert new.read(0, 4) == 0x8000_0008
    assert new.read(7, 1) == 0x06  # class code of the host bridge


def host_bridge() -> Stateful:
    return PciBus(Bus("mmio"), []).host_bridge


def test_the_host_bridge_is_restored() -> None:
    old, new = PciBus(Bus("mmio"), []), PciBus(Bus("mmio"), [])
    old.host_bridge.config_write(0x3C, 1, 0x0B)
    transfer_state(old.host_bridge, new.host_bridge)
    assert new.host_bridge.config_read(0x3C, 1) == 0x0B


def table() -> RegisterTable:
    return RegisterTable(
        "table",
        [
            Register("plain", 0, 2, reset=0x1234),
            Register("masked", 2, 2, reset=0x8001, writable=0x0FF0),
            Register("fixed", 4, 1, Access.RO, reset=7),
            Register("hidden", 5, 1, Access.WO),
            Register("foreign", 6, 1, Access.RO, read=lambda: 9),
        ],
    )


def test_a_register_table_saves_the_bits_that_guests_can_write() -> None:
    old, new = table(), table()
    old.write(0, 2, 0xAAAA)
    old.write(2, 2, 0xFFFF)
    old.write(5, 1, 0x55)
    old["fixed"] = 8
    assert old.STATE_KIND == "table"
    assert old.save_state() == {"plain": 0xAAAA, "masked": 0x8FF1, "hidden": 0x55}
    transfer_state(old, new)
    assert (new["plain"], new["masked"], new["hidden"], new["fixed"]) == (0xAAAA, 0x8FF1, 0x55, 7)


@pytest.mark.parametrize("masked", [0x0001, 0x8002, 0x1_0000])
def test_a_register_table_refuses_bits_that_guests_cannot_write(masked: int) -> None:
    with pytest.raises(StateError, match=r"^table: masked "):
        table().restore_state(Fields("table", {"plain": 0, "masked": masked, "hidden": 0}))


PARTS: list[Callable[[], Stateful]] = [
    rtc,
    acpi_pm,
    pci_ports,
    host_bridge,
    table,
]


@pytest.mark.parametrize("make", PARTS)
@given(data=st.data())
def test_hostile_states_are_refused_and_change_nothing(
    make: Callable[[], Stateful], data: st.DataObject
) -> None:
    part = make()
    payload: Payload = data.draw(corrupted(part.save_state()))
    if restores(part, payload):
        assert part.save_state() == payload
