# SPDX-License-Identifier: Apache-2.0
"""Statistics over QMP as QEMU's clients query them, with QEMU's own client library."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import ExecuteError, QMPClient

from devices.balloon.stat_tags import STATISTICS
from devices.testing.balloon.stats import FREE, MAJOR_FAULTS, TOTAL
from pyvmm.qmp.server import ControlServer
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm

BALLOON = "/machine/peripheral/balloon0"
INTERVAL = "guest-stats-polling-interval"
NAMES = [each.name for each in STATISTICS]
Scenario = Callable[[InMemoryVm, QMPClient], Coroutine[Any, Any, None]]


@pytest.fixture
def with_client(tmp_path: Path) -> Callable[[Scenario], None]:
    """Return a function that runs a scenario with a VM and a negotiated client."""

    def run(scenario: Scenario) -> None:
        async def main() -> None:
            vm = InMemoryVm()
            server = ControlServer(vm, tmp_path / "qmp")
            await server.start()
            client = QMPClient("test")
            await client.connect(str(tmp_path / "qmp"))
            try:
                await asyncio.wait_for(scenario(vm, client), 30)
            finally:
                vm.balloon_statistics.close()
                await client.disconnect()
                await server.close()

        asyncio.run(main())

    return run


async def get(client: QMPClient, name: str, path: str = BALLOON) -> Any:
    return await client.execute("qom-get", {"path": path, "property": name})


async def put(client: QMPClient, value: Any, name: str = INTERVAL) -> Any:
    return await client.execute("qom-set", {"path": BALLOON, "property": name, "value": value})


async def error(client: QMPClient, command: str, **arguments: Any) -> tuple[str, str]:
    with pytest.raises(ExecuteError) as error:
        await client.execute(command, arguments)
    return error.value.error_class, str(error.value)


async def find(client: QMPClient, wanted: str, path: str = "") -> list[str]:
    """Return the paths of all objects of type `wanted`, as management software finds them."""
    found = []
    listed: Any = await client.execute("qom-list", {"path": path or "/"})
    for each in listed:
        if each["type"] == f"child<{wanted}>":
            found.append(f"{path}/{each['name']}")
        elif each["type"].startswith("child<"):
            found += await find(client, wanted, f"{path}/{each['name']}")
    return found


def test_the_balloon_is_found_by_walking_the_tree(
    with_client: Callable[[Scenario], None],
) -> None:
    async def scenario(vm: InMemoryVm, client: QMPClient) -> None:
        assert await find(client, "virtio-balloon-pci") == [BALLOON]
        properties: Any = await client.execute("qom-list", {"path": BALLOON})
        assert {"name": "guest-stats", "type": "guest statistics"} in properties
        assert {"name": INTERVAL, "type": "int"} in properties
        for path in ("balloon0", "peripheral/balloon0", "//machine/peripheral/balloon0/"):
            assert await client.execute("qom-list", {"path": path}) == properties
            assert await get(client, "type", path) == "virtio-balloon-pci"
        assert await get(client, "balloon0", "/machine/peripheral") == BALLOON

    with_client(scenario)


def test_guest_stats_are_absent_before_the_first_report(
    with_client: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(vm: InMemoryVm, client: QMPClient) -> None:
        guest = vm.stats_guest
        start = guest.start
        monkeypatch.setattr(guest, "start", lambda: None)
        absent = dict.fromkeys(NAMES, 2**64 - 1)
        assert await get(client, "guest-stats") == {"stats": absent, "last-update": 0}
        start()
        answer = await get(client, "guest-stats")
        last = vm.balloon_statistics.last
        assert last is not None
        assert answer["last-update"] == last.time_ns // 10**9 > 1_600_000_000
        assert answer["stats"] == absent | {
            NAMES[tag]: value for tag, value in guest.statistics.items()
        }

    with_client(scenario)


def test_the_polling_interval_can_be_set_and_read(with_client: Callable[[Scenario], None]) -> None:
    async def scenario(vm: InMemoryVm, client: QMPClient) -> None:
        assert await get(client, INTERVAL) == 0
        assert vm.stats_guest.requests == 0
        assert await put(client, 3600) == {}
        assert await get(client, INTERVAL) == 3600
        while vm.stats_guest.requests == 0:
            await asyncio.sleep(0)
        assert await put(client, 2**32 - 1) == {}
        assert await put(client, 0) == {}
        assert await get(client, INTERVAL) == 0

    with_client(scenario)


def test_polling_updates_guest_stats(with_client: Callable[[Scenario], None]) -> None:
    async def scenario(vm: InMemoryVm, client: QMPClient) -> None:
        await put(client, 1)
        vm.stats_guest.statistics[FREE] = 12345
        async with asyncio.timeout(20):
            while (await get(client, "guest-stats"))["stats"]["stat-free-memory"] != 12345:
                await asyncio.sleep(0.05)

    with_client(scenario)


def test_errors_are_worded_as_qemu_words_them(with_client: Callable[[Scenario], None]) -> None:
    async def scenario(vm: InMemoryVm, client: QMPClient) -> None:
        for path in (
            "/machine/peripheral/balloon1",
            "/balloon0",
            "nosuch",
            "alloon0",
            "/machine/x/",
        ):
            expected = ("DeviceNotFound", f"Device '{path}' not found")
            assert await error(client, "qom-list", path=path) == expected
            assert await error(client, "qom-get", path=path, property="type") == expected
            arguments = {"path": path, "property": INTERVAL, "value": 1}
            assert await error(client, "qom-set", **arguments) == expected
        _, desc = await error(client, "qom-get", path=BALLOON, property="nosuch")
        assert desc == "Property 'virtio-balloon-pci.nosuch' not found"
        at = {"path": BALLOON, "property": "guest-stats"}
        _, desc = await error(client, "qom-set", **at, value={})
        assert desc == "Property 'virtio-balloon-pci.guest-stats' is not writable"
        _, desc = await error(client, "qom-set", **at)
        assert desc == "Parameter 'value' is missing"
        at["property"] = INTERVAL
        assert (await error(client, "qom-set", **at, value=-1))[1] == (
            "timer value must be greater than zero"
        )
        assert (await error(client, "qom-set", **at, value=2**32))[1] == "timer value is too big"
        no_integers: list[Any] = ["1", 1.5, True, None, [], {}]
        for value in no_integers:
            _, desc = await error(client, "qom-set", **at, value=value)
            assert desc == f"Invalid parameter type for '{INTERVAL}', expected: integer"
        _, desc = await error(client, "qom-list", path=1)
        assert desc == "Invalid parameter type for 'path', expected: string"

    with_client(scenario)


def test_query_balloon_stats_returns_absent_and_unknown_statistics(
    with_client: Callable[[Scenario], None],
) -> None:
    async def scenario(vm: InMemoryVm, client: QMPClient) -> None:
        vm.stats_guest.statistics = {FREE: 1, TOTAL: 2**64 - 1, MAJOR_FAULTS: 0, 99: 4}
        answer: Any = await client.execute("query-balloon-stats", {"timeout": 30})
        assert vm.stats_guest.requests == 1
        present = {NAMES[FREE]: 1, NAMES[TOTAL]: 2**64 - 1, NAMES[MAJOR_FAULTS]: 0}
        assert answer["stats"] == {**dict.fromkeys(NAMES), **present}
        assert answer["unknown"] == {"99": 4}
        assert set(answer["time"]) == {"seconds", "microseconds"}

    with_client(scenario)


def test_query_balloon_stats_fails_while_the_guest_is_paused(
    with_client: Callable[[Scenario], None],
) -> None:
    async def scenario(vm: InMemoryVm, client: QMPClient) -> None:
        await client.execute("query-balloon-stats")
        await client.execute("stop")
        class_, desc = await error(client, "query-balloon-stats", timeout=0.05)
        assert class_ == "DeviceNotActive"
        assert desc == "the guest is paused and cannot respond"
        await client.execute("cont")
        assert await client.execute("query-balloon-stats")

    with_client(scenario)


def test_query_balloon_stats_waits_for_a_paused_guest_to_resume(
    tmp_path: Path, with_client: Callable[[Scenario], None]
) -> None:
    async def scenario(vm: InMemoryVm, client: QMPClient) -> None:
        await client.execute("query-balloon-stats")
        await client.execute("stop")
        other = QMPClient("other")
        await other.connect(str(tmp_path / "qmp"))
        waiting = asyncio.create_task(other.execute("query-balloon-stats", {"timeout": 30}))
        while vm.balloon_statistics._balloon.stats.requests < 2:
            await asyncio.sleep(0)
        vm.stats_guest.statistics[FREE] = 77
        await client.execute("cont")
        answer: Any = await waiting
        assert answer["stats"]["stat-free-memory"] == 77
        await other.disconnect()

    with_client(scenario)


@pytest.mark.parametrize("timeout", [-1, 0, 86401, 1e300])
def test_timeouts_out_of_range_are_rejected(
    with_client: Callable[[Scenario], None], timeout: float
) -> None:
    async def scenario(vm: InMemoryVm, client: QMPClient) -> None:
        _, desc = await error(client, "query-balloon-stats", timeout=timeout)
        assert desc == "Parameter 'timeout' expects seconds, more than 0 to 86400"
        _, desc = await error(client, "query-balloon-stats", timeout="5")
        assert desc == "Invalid parameter type for 'timeout', expected: number"

    with_client(scenario)
