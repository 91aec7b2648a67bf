# SPDX-License-Identifier: Apache-2.0
"""`x-query-virtio*`: any virtio device and its queues, with hostile rings, as QEMU shows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import pytest
from hypothesis import given

from devices.console.device import ConsoleDevice
from devices.rng.device import RngDevice
from devices.testing import ALL_FEATURES, AnonymousRam, Board, RecordingTracer, VirtioDriver
from devices.testing.driver import EVENT_IDX
from devices.testing.strategies import RingContents, ring_contents
from devices.testing.timers import FakeTimers
from devices.virtio.device import VirtioDevice
from devices.virtio.pci_transport import VirtioPciTransport
from devices.virtio.queue import QueueSpec
from pyvmm.qmp.command import Client
from pyvmm.qmp.commands import COMMANDS
from pyvmm.qmp.messages import QmpError
from pyvmm.qmp.vm_control import VmControl
from pyvmm_native.ring import Chain

RAM_BYTES = 64 << 20
KEEPER = {"path": "/machine/peripheral/keeper0/virtio-backend"}
QUEUE = {**KEEPER, "queue": 0}


class Keeper(VirtioDevice):
    """A device of no catalogue, which keeps every buffer."""

    def __init__(self) -> None:
        super().__init__(
            device_id=63,
            name="keeper",
            queues=[QueueSpec("kept", 16), QueueSpec("optional", 8)],
            memory=AnonymousRam((0, RAM_BYTES)).memory,
            tracer=RecordingTracer(),
            offered=1 << 3 | 1 << 7,
            feature_names={1 << 3: "KEEP"},
        )

    def serve(self, queue: int, chain: Chain) -> None:
        pass

    def has_queue(self, index: int) -> bool:
        return index == 0


class Vm:
    """A VM that has only devices."""

    status = "running"

    def __init__(self, *boards: Board) -> None:
        self._transports = {board.device.name: board.transport for board in boards}

    @contextmanager
    def locked_devices(self) -> Iterator[Mapping[str, VirtioPciTransport]]:
        yield self._transports


def run(vm: Vm, command: str, **arguments: Any) -> Any:
    return COMMANDS[command].execute(cast(VmControl, vm), arguments, Client())


def started(features: int = ALL_FEATURES & ~EVENT_IDX) -> tuple[Vm, VirtioDriver]:
    board = Board(Keeper())
    return Vm(board), VirtioDriver(board).start(features=features)


def element(vm: Vm, **arguments: int) -> Any:
    return run(vm, "x-query-virtio-queue-element", **QUEUE, **arguments)


def test_devices_are_listed_with_the_names_of_qemu() -> None:
    ram = AnonymousRam((0, RAM_BYTES))
    rng = RngDevice(ram.memory, FakeTimers(), RecordingTracer(), bytes_per_s=0)
    console = ConsoleDevice(ram.memory, RecordingTracer(), console=True, ports=(), max_ports=1)
    vm = Vm(Board(rng), Board(console), Board(Keeper()))
    listed = run(vm, "x-query-virtio")
    assert [each["name"] for each in listed] == ["virtio-rng", "virtio-serial", "virtio-keeper"]
    for device in listed:
        status = run(vm, "x-query-virtio-status", path=device["path"])
        assert status["name"] == device["name"]
        assert (status["started"], status["status"]["statuses"]) == (False, [])
        queue = run(vm, "x-query-virtio-queue-status", path=device["path"], queue=0)
        assert (queue["signalled-used-valid"], queue["vring-desc"]) == (False, 0)


def test_the_status_of_a_device_is_that_which_its_driver_has_set() -> None:
    vm, driver = started(features=ALL_FEATURES)
    status = run(vm, "x-query-virtio-status", **KEEPER)
    assert (status["device-id"], status["num-vqs"], status["started"]) == (63, 1, True)
    assert status["status"] == {
        "statuses": [
            "VIRTIO_CONFIG_S_ACKNOWLEDGE",
            "VIRTIO_CONFIG_S_DRIVER",
            "VIRTIO_CONFIG_S_DRIVER_OK",
            "VIRTIO_CONFIG_S_FEATURES_OK",
        ]
    }
    assert status["host-features"] == {
        "transports": [
            "VIRTIO_RING_F_INDIRECT_DESC",
            "VIRTIO_RING_F_EVENT_IDX",
            "VIRTIO_F_VERSION_1",
            "VIRTIO_F_RING_RESET",
        ],
        "dev-features": ["VIRTIO_KEEPER_F_KEEP"],
        "unknown-dev-features": 1 << 7,
    }
    assert status["guest-features"] == status["host-features"]
    driver.write_common("queue_select", 1)
    vm.status = "paused"
    status = run(vm, "x-query-virtio-status", **KEEPER)
    assert (status["queue-sel"], status["vm-running"]) == (1, False)


def test_a_query_does_not_acknowledge_an_interrupt() -> None:
    vm, driver = started()
    driver.board.device.config_changed()
    assert [run(vm, "x-query-virtio-status", **KEEPER)["isr"] for _ in range(2)] == [2, 2]
    assert driver.read_isr() == 2


def test_the_status_of_a_queue_has_its_addresses_and_indices() -> None:
    vm, driver = started()
    driver.send(0, [b"request"], [64])
    driver.queues[0].add([b"later"], [])
    driver.queues[0].publish()
    status = run(vm, "x-query-virtio-queue-status", **QUEUE)
    queue = driver.queues[0]
    assert status == {
        "name": "virtio-keeper",
        "queue-index": 0,
        "inuse": 1,
        "vring-num": 16,
        "vring-num-default": 16,
        "vring-align": 4096,
        "vring-desc": queue.desc_gpa,
        "vring-avail": queue.avail_gpa,
        "vring-used": queue.used_gpa,
        "last-avail-idx": 1,
        "shadow-avail-idx": 2,
        "used-idx": 0,
        "signalled-used": 0,
        "signalled-used-valid": True,
    }


def test_an_element_is_the_chain_at_an_index_of_the_available_ring() -> None:
    vm, driver = started()
    driver.send(0, [b"request"], [64])
    driver.queues[0].add([b"later"], [])
    driver.queues[0].publish()
    first, following = element(vm, index=0), element(vm)
    assert [(each["len"], each["flags"]) for each in first["descs"]] == [
        (7, ["next"]),
        (64, ["write"]),
    ]
    assert (first["index"], first["avail"]["ring"]) == (0, 0)
    assert [each["len"] for each in following["descs"]] == [5]
    assert following["avail"] == {"flags": 0, "idx": 2, "ring": following["index"]}
    assert element(vm, index=16) == first
    assert element(vm, index=65535)["avail"]["idx"] == 2


def test_an_indirect_table_stands_for_its_descriptor() -> None:
    vm, driver = started()
    queue = driver.queues[0]
    queue.set_desc(3, queue.place(bytes(16) * 2), 32, 4)
    queue.set_avail_ring(0, 3)
    assert len(element(vm, index=0)["descs"]) == 1
    assert element(vm, index=0)["descs"][0] == {"addr": 0, "len": 0, "flags": []}


@pytest.mark.parametrize(
    ("gpa", "length", "flags", "next_"),
    [(0, 8, 1, 999), (RAM_BYTES - 8, 32, 4, 0), (2**64 - 8, 16, 4, 0), (0, 0, 4, 0)],
)
def test_a_malformed_chain_is_an_error(gpa: int, length: int, flags: int, next_: int) -> None:
    vm, driver = started()
    driver.queues[0].set_desc(0, gpa, length, flags, next_)
    with pytest.raises(QmpError, match="The chain from descriptor 0 is malformed"):
        element(vm, index=0)


def test_a_loop_of_descriptors_ends() -> None:
    vm, driver = started()
    driver.queues[0].set_desc(0, 0, 8, 1, 0)
    assert len(element(vm, index=0)["descs"]) == 16


@given(ring_contents(16, RAM_BYTES))
def test_nothing_that_a_driver_writes_is_a_bug(contents: RingContents) -> None:
    vm, driver = started()
    contents.write_to(driver.queues[0])
    for index in range(16):
        try:
            assert len(element(vm, index=index)["descs"]) <= 32
        except QmpError as error:
            assert "is malformed" in error.desc  # noqa: PT017
    run(vm, "x-query-virtio-queue-status", **QUEUE)


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("status", {"path": "/machine"}, "Path /machine is not a VirtIODevice"),
        ("queue-status", {**KEEPER, "queue": 1}, "Invalid virtqueue number 1"),
        ("queue-status", {**KEEPER, "queue": 2}, "Invalid virtqueue number 2"),
        ("queue-status", {**KEEPER, "queue": 65536}, "Parameter 'queue' expects the number of"),
        ("queue-element", {**QUEUE, "index": -1}, "Parameter 'index' expects an index, from 0"),
        ("queue-element", QUEUE, "Region caches not initialized"),
        ("vhost-queue-status", QUEUE, "Error: vhost device has not started yet"),
        ("vhost-queue-status", {"path": "", "queue": 0}, "Path  is not a VirtIODevice"),
    ],
)
def test_a_device_or_queue_that_does_not_exist_is_an_error(
    command: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(QmpError, match=message):
        run(Vm(Board(Keeper())), f"x-query-virtio-{command}", **arguments)
