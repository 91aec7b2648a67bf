# SPDX-License-Identifier: Apache-2.0
"""The server's answers from guest memory: rings, buffers of a hostile driver, registers, pages."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from typing import Any

import pytest

from pyvmm.scope.guest_memory import MAX_PART_BYTES
from pyvmm.scope.live_guest import LiveGuest
from pyvmm.scope.server import ScopeServer
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm
from tests.pyvmm.scope.conftest import Scenario
from tests.pyvmm.scope.scope_client import get

NEXT, WRITE, INDIRECT = 1, 2, 4
DATA_GPA, TABLE_GPA = 512 << 20, 513 << 20
Descriptor = tuple[int, int, int, int]
Watch = Callable[[Scenario], None]


def inflate_queue(vm: InMemoryVm) -> dict[str, Any]:
    """Return the registers of the inflate queue."""
    queues = vm.pci_registers("balloon")["queues"]
    return next(queue for queue in queues if queue["name"] == "inflate")


def write_table(vm: InMemoryVm, gpa: int, *descriptors: Descriptor) -> None:
    for index, descriptor in enumerate(descriptors):
        vm.ram.memory.write(gpa + 16 * index, struct.pack("<QIHH", *descriptor))


async def buffer(server: ScopeServer, head: str = "0") -> Any:
    answer = await get(server, f"api/buffer?device=balloon&queue=inflate&head={head}")
    assert answer.status == 200, answer.json
    return answer.json


def test_the_rings_are_those_in_memory(watch: Watch) -> None:
    async def scenario(vm: InMemoryVm, guest: LiveGuest, server: ScopeServer) -> None:
        queue = inflate_queue(vm)
        write_table(vm, queue["desc"], (DATA_GPA, 8, NEXT, 1), (DATA_GPA + 8, 16, WRITE, 0))
        size = queue["size"]
        vm.ram.memory.write(queue["driver"], struct.pack("<HHH", 1, 2, 7))
        vm.ram.memory.write(queue["driver"] + 4 + 2 * size, struct.pack("<H", 3))
        vm.ram.memory.write(queue["device"], struct.pack("<HHII", 0, 1, 7, 64))
        found = (await get(server, "api/queue?device=balloon&queue=inflate")).json
        assert found["size"] == len(found["descriptors"]) == size
        assert found["descriptors"][:2] == [[DATA_GPA, 8, NEXT, 1], [DATA_GPA + 8, 16, WRITE, 0]]
        avail, used = found["avail"], found["used"]
        assert (avail["flags"], avail["idx"], avail["ring"][0], avail["used_event"]) == (1, 2, 7, 3)
        assert (used["idx"], used["ring"][0]) == (1, [7, 64])

    watch(scenario)


def test_a_buffer_has_the_first_bytes_of_its_parts(watch: Watch) -> None:
    async def scenario(vm: InMemoryVm, guest: LiveGuest, server: ScopeServer) -> None:
        vm.ram.memory.write(DATA_GPA, b"x" * 8192)
        write_table(vm, inflate_queue(vm)["desc"], (TABLE_GPA, 48, INDIRECT, 0))
        write_table(
            vm,
            TABLE_GPA,
            (DATA_GPA, 5000, NEXT, 1),
            (DATA_GPA, 5000, NEXT, 2),
            (DATA_GPA, 3, WRITE, 0),
        )
        found = await buffer(server)
        assert [each["table_gpa"] for each in found["descriptors"]] == [0, *[TABLE_GPA] * 3]
        assert base64.b64decode(found["readable"]) == b"x" * MAX_PART_BYTES
        assert base64.b64decode(found["writable"]) == b"xxx"

    watch(scenario)


@pytest.mark.parametrize(
    "table",
    [
        [(DATA_GPA, 8, NEXT, 1), (DATA_GPA, 8, NEXT, 0)],
        [(TABLE_GPA, 16, INDIRECT, 0)],
        [(TABLE_GPA, 0xFFFFFFFF, INDIRECT | NEXT, 0xFFFF)],
        [(TABLE_GPA, 0, INDIRECT, 0)],
        [(DATA_GPA, 0, NEXT, 0xFFFF)],
    ],
    ids=["loop", "nested tables", "large table", "empty table", "index outside"],
)
def test_the_walk_of_a_hostile_chain_ends(watch: Watch, table: list[Descriptor]) -> None:
    async def scenario(vm: InMemoryVm, guest: LiveGuest, server: ScopeServer) -> None:
        queue = inflate_queue(vm)
        write_table(vm, queue["desc"], *table)
        write_table(vm, TABLE_GPA, (TABLE_GPA, 16, INDIRECT | NEXT, 0))
        found = await buffer(server)
        assert 1 <= len(found["descriptors"]) <= queue["size"] + 1
        assert (await buffer(server, "65535"))["descriptors"] == []

    watch(scenario)


def test_bytes_outside_ram_are_an_error(watch: Watch) -> None:
    async def scenario(vm: InMemoryVm, guest: LiveGuest, server: ScopeServer) -> None:
        for table in ((1 << 63, 8, 0, 0), (1 << 63, 16, INDIRECT, 0)):
            write_table(vm, inflate_queue(vm)["desc"], table)
            answer = await get(server, "api/buffer?device=balloon&queue=inflate&head=0")
            assert answer.status == 409
            assert answer.json["error"]

    watch(scenario)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("buffer?device=balloon&queue=inflate&head=-1", 400),
        ("buffer?device=balloon&queue=inflate&head=123456", 400),
        ("buffer?device=balloon&queue=inflate", 400),
        ("queue?device=balloon&queue=none", 409),
        ("pages?cells=0", 400),
        ("pages?cells=x", 400),
    ],
)
def test_a_request_for_what_does_not_exist_is_an_error(
    watch: Watch, path: str, status: int
) -> None:
    async def scenario(vm: InMemoryVm, guest: LiveGuest, server: ScopeServer) -> None:
        assert (await get(server, f"api/{path}")).status == status

    watch(scenario)


def test_registers_are_those_of_the_device(watch: Watch) -> None:
    async def scenario(vm: InMemoryVm, guest: LiveGuest, server: ScopeServer) -> None:
        found = (await get(server, "api/registers?device=balloon")).json
        assert found["queues"] == vm.pci_registers("balloon")["queues"]

    watch(scenario)


@pytest.mark.parametrize("cells", [1, 100, 99999])
def test_the_cells_of_the_memory_map_are_at_most_as_many_as_requested(
    watch: Watch, cells: int
) -> None:
    async def scenario(vm: InMemoryVm, guest: LiveGuest, server: ScopeServer) -> None:
        found = (await get(server, f"api/pages?cells={cells}")).json
        assert 1 <= len(found["cells"]) <= cells
        assert len(found["cells"]) * found["cell_bytes"] >= vm.ram_bytes
        assert found["rss"] > 0

    watch(scenario)
