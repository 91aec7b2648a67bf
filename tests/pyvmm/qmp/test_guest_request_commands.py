# SPDX-License-Identifier: Apache-2.0
"""query-unused-pages and the commands on caches and file systems, through a session."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from inspect import isawaitable
from typing import Any

import pytest

from devices.testing.balloon.misc import GET_UNUSED_PAGES
from pyvmm.qmp.session import QmpSession
from pyvmm.units import GIB, MIB
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm


async def execute(session: QmpSession, command: str, **arguments: Any) -> Any:
    reply = session.reply({"execute": command, "arguments": arguments})
    decoded = json.loads(await reply if isawaitable(reply) else reply)
    return decoded.get("return", decoded)


def talk(vm: InMemoryVm, *requests: tuple[str, dict[str, Any]]) -> list[Any]:
    """Return the values of commands or their error replies, in order."""

    async def main() -> list[Any]:
        session = QmpSession(vm)
        await execute(session, "qmp_capabilities")
        return [await execute(session, command, **arguments) for command, arguments in requests]

    return asyncio.run(main())


def query(vm: InMemoryVm, **arguments: Any) -> Any:
    (answer,) = talk(vm, ("query-unused-pages", arguments))
    return answer


def error(answer: Mapping[str, Any], error_class: str = "DeviceNotActive") -> str:
    assert answer["error"]["class"] == error_class
    return str(answer["error"]["desc"])


def test_unused_pages_are_counted_without_runs_and_cells() -> None:
    vm = InMemoryVm(64 * MIB)
    vm.misc_guest.unused = {*range(100, 200), 300, 302}
    answer = dict(query(vm))
    assert answer.pop("seconds") > 0
    assert answer == {
        "ram-pages": 16384,
        "unused-pages": 102,
        "share": round(102 / 16384, 6),
        "largest-run": 100,
        "run-count": 3,
    }


def test_a_guest_without_unused_pages_reports_none() -> None:
    vm = InMemoryVm(64 * MIB)
    vm.misc_guest.unused = set()
    answer = query(vm, runs=10, cells=4)
    assert (answer["unused-pages"], answer["share"], answer["run-count"]) == (0, 0, 0)
    assert answer["largest-run"] == 0
    assert answer["runs"] == []
    assert answer["cells"]["unused"] == [0, 0, 0, 0]


@pytest.mark.parametrize("runs", [1, 2, 3, 65536])
def test_runs_are_the_first_by_address(runs: int) -> None:
    vm = InMemoryVm(64 * MIB)
    vm.misc_guest.unused = {1, 2, 3, 10, 20, 21}
    answer = query(vm, runs=runs)
    assert answer["run-count"] == 3
    assert answer["runs"] == [[1, 3], [10, 1], [20, 2]][:runs]


def test_cells_cover_ram_and_the_hole_below_4_gib() -> None:
    vm = InMemoryVm(4 * GIB)
    vm.misc_guest.unused = {*range(5000, 6000), *range(1 << 20, (1 << 20) + 7)}
    cells = query(vm, cells=5)["cells"]
    gib = GIB // 4096
    assert cells == {
        "pages": gib,
        "ram": [gib, gib, gib, 0, gib],
        "unused": [1000, 0, 0, 0, 7],
    }


@pytest.mark.parametrize(
    ("ram_mib", "at_most", "pages", "count"),
    [(64, 1, 16384, 1), (64, 64, 256, 64), (65, 64, 512, 33), (100, 65536, 1, 25600)],
)
def test_cells_are_at_most_the_given_number_of_equal_powers_of_two(
    ram_mib: int, at_most: int, pages: int, count: int
) -> None:
    vm = InMemoryVm(ram_mib * MIB)
    answer = query(vm, cells=at_most)
    cells = answer["cells"]
    assert cells["pages"] == pages
    assert len(cells["ram"]) == len(cells["unused"]) == count <= at_most
    assert sum(cells["ram"]) == answer["ram-pages"] == ram_mib * 256
    assert sum(cells["unused"]) == answer["unused-pages"]


def test_caches_are_dropped_after_a_sync() -> None:
    vm = InMemoryVm(64 * MIB)
    guest = vm.misc_guest
    guest.unused, guest.cached, guest.dirty = {1}, {2, 3}, {3}
    answers = talk(
        vm,
        ("balloon-sync-filesystems", {}),
        ("balloon-drop-caches", {"timeout": 5}),
        ("query-unused-pages", {"timeout": 5.5}),
    )
    assert answers[:2] == [{}, {}]
    assert answers[2]["unused-pages"] == 3


def test_commands_that_the_driver_does_not_know_fail() -> None:
    vm = InMemoryVm(64 * MIB)
    vm.misc_guest.commands = {GET_UNUSED_PAGES}
    sync, drop = talk(vm, ("balloon-sync-filesystems", {}), ("balloon-drop-caches", {}))
    assert error(sync) == "the guest's balloon driver does not know SYNC"
    assert error(drop) == "the guest's balloon driver does not know DROP_CACHE"


def test_a_paused_guest_cannot_respond() -> None:
    vm = InMemoryVm(64 * MIB)
    _, answer = talk(vm, ("stop", {}), ("query-unused-pages", {}))
    assert error(answer) == "the guest is paused and cannot respond"


def test_a_silent_guest_does_not_delay_other_clients() -> None:
    async def main() -> None:
        vm = InMemoryVm(64 * MIB)
        vm.misc_requests  # noqa: B018 (made with its guest, which then does not respond)
        vm.misc_guest.board.msi.on_trigger = lambda vector: None
        waiting_session, other = QmpSession(vm), QmpSession(vm)
        for session in (waiting_session, other):
            await execute(session, "qmp_capabilities")
        waiting = asyncio.create_task(execute(waiting_session, "query-unused-pages", timeout=0.2))
        await asyncio.sleep(0)
        assert await execute(other, "query-status") == {"status": "running", "running": True}
        assert not waiting.done()
        assert error(await waiting) == "the guest has not responded within 0.2 s"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"timeout": 0}, "'timeout' expects seconds"),
        ({"timeout": -1.5}, "'timeout' expects seconds"),
        ({"timeout": 1e300}, "'timeout' expects seconds"),
        ({"timeout": "1"}, "Invalid parameter type for 'timeout', expected: number"),
        ({"timeout": True}, "Invalid parameter type for 'timeout', expected: number"),
        ({"runs": -1}, "'runs' expects a value of 0 to 65536"),
        ({"runs": 65537}, "'runs' expects a value of 0 to 65536"),
        ({"runs": 1.0}, "Invalid parameter type for 'runs', expected: integer"),
        ({"cells": 1 << 70}, "'cells' expects a value of 0 to 65536"),
        ({"pages": 1}, "'pages' is unexpected"),
    ],
)
def test_invalid_arguments_are_rejected(arguments: dict[str, Any], words: str) -> None:
    assert words in error(query(InMemoryVm(64 * MIB), **arguments), "GenericError")


def test_query_commands_lists_them() -> None:
    (commands,) = talk(InMemoryVm(64 * MIB), ("query-commands", {}))
    names = {command["name"] for command in commands}
    assert {"query-unused-pages", "balloon-drop-caches", "balloon-sync-filesystems"} <= names
