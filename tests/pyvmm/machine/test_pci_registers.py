# SPDX-License-Identifier: Apache-2.0
"""The registers of any device are shown as the guest sees them, without changing anything."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from devices.pci.config_space import CONFIG_SPACE_BYTES
from devices.testing.board import Board
from devices.testing.driver import VirtioDriver
from devices.testing.ram import AnonymousRam
from devices.testing.recorders import RecordingTracer
from devices.testing.timers import FakeTimers
from devices.virtio.pci_interrupts import ISR_QUEUE
from pyvmm.config import MachineConfig
from pyvmm.machine.catalogue import CATALOGUE, Ports, make_models
from pyvmm.machine.pci_registers import pci_registers
from pyvmm.units import MIB
from pyvmm_native.events import EventBuffer


def running(name: str, buffer: EventBuffer | None = None) -> tuple[Board, VirtioDriver]:
    """Return the device `name` of the catalogue on a board, with a driver that runs it."""
    tracer = RecordingTracer(buffer)
    ports = Ports(AnonymousRam((0, 64 * MIB)), FakeTimers(), tracer)
    config = MachineConfig(
        Path("/kernel"), None, "", 64 * MIB, 1, "standard", rng=1024, console="virtio"
    )
    models = {entry.name: model for entry, model in make_models(CATALOGUE, config, ports)}
    board = Board(models[name], tracer)
    return board, VirtioDriver(board).start()


def value(shown: dict[str, Any], table: str, register: str) -> int:
    (found,) = [
        row["value"]
        for row in shown["registers"]
        if (row["table"], row["register"]) == (table, register)
    ]
    return int(found)


@pytest.mark.parametrize("name", [entry.name for entry in CATALOGUE])
def test_every_device_of_the_catalogue_is_shown_as_its_driver_has_set_it_up(name: str) -> None:
    board, driver = running(name)
    shown = pci_registers(board.transport)
    assert json.loads(json.dumps(shown)) == shown
    config = base64.b64decode(shown["config"])
    read = [driver.read_pci(offset) for offset in range(0, CONFIG_SPACE_BYTES, 4)]
    assert [int.from_bytes(config[at : at + 4], "little") for at in range(0, 256, 4)] == read
    decoded = {bar["index"]: bar["address"] for bar in shown["bars"] if bar["decoded"]}
    assert decoded[0] == board.function.bar_gpa(0)
    names = [capability["name"] for capability in shown["capabilities"]]
    assert names[:2] == ["virtio common", "virtio isr"]
    assert names[-1] == "msi-x"
    for register in ("device_status", "num_queues", "config_msix_vector"):
        assert value(shown, f"{name}.common", register) == driver.read_common(register)
    assert shown["features"]["offered"] == board.device.offered
    assert shown["features"]["accepted"] == board.device.accepted
    assert "VERSION_1" in shown["features"]["accepted-names"]
    live = [queue for queue in shown["queues"] if queue["live"]]
    assert live
    for queue in live:
        ring = driver.queues[queue["index"]]
        addresses = queue["desc"], queue["driver"], queue["device"]
        assert addresses == (ring.desc_gpa, ring.avail_gpa, ring.used_gpa)
        driver.write_common("queue_select", queue["index"])
        assert queue["size"] == driver.read_common("queue_size")
        assert queue["enable"]


@pytest.mark.parametrize("name", [entry.name for entry in CATALOGUE])
def test_showing_registers_changes_nothing_and_emits_no_event(name: str) -> None:
    buffer = EventBuffer()
    board, driver = running(name, buffer)
    board.transport.interrupts.isr_status = ISR_QUEUE
    before = board.transport.save_state()
    buffer.start()
    shown = pci_registers(board.transport)
    assert buffer.stop() is None
    assert board.transport.save_state() == before
    assert value(shown, f"{name}.isr", "isr_status") == ISR_QUEUE
    assert driver.read_isr() == ISR_QUEUE
    assert value(pci_registers(board.transport), f"{name}.isr", "isr_status") == 0


def test_vectors_are_shown_with_message_mask_and_pending_bit() -> None:
    board, driver = running("rng")
    board.transport.msix.table.write(0, 4, 0xFEE0_1000)
    board.transport.msix.table.write(8, 4, 0x41)
    board.transport.msix.signal(1)
    shown = pci_registers(board.transport)["msix"]
    assert len(shown) == driver.msix_vectors
    assert (shown[0]["address"], shown[0]["data"]) == (0xFEE0_1000, 0x41)
    board.transport.msix.table.write(16 + 12, 4, 1)
    board.transport.msix.signal(1)
    masked = pci_registers(board.transport)["msix"][1]
    assert (masked["masked"], masked["pending"]) == (True, board.transport.msix.enabled)
