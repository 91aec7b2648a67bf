# SPDX-License-Identifier: Apache-2.0
"""The migration commands, from a VM without a guest to a real destination."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import EventListener, QMPClient

from pyvmm.migration.errors import MigrationError
from pyvmm.qmp import commands
from pyvmm.qmp.messages import QmpError, Request
from pyvmm.qmp.server import ControlServer
from pyvmm.sockets.addresses import UnixAddress
from pyvmm.sockets.listener import MigrationListener
from pyvmm.sockets.tls import Security
from pyvmm_native.checksum import CHECKSUMS
from pyvmm_native.runs import PageRuns
from tests.pyvmm.blocking.refused_threads import refused_threads
from tests.pyvmm.migration.migration_destination import Destination
from tests.pyvmm.migration.migration_guest import FakeTarget
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm
from tests.pyvmm.sockets.accepting import accept_connection


def ask(vm: InMemoryVm, command: str, **arguments: Any) -> Any:
    return commands.execute(vm, Request(command, arguments))


def run(scenario: Callable[[InMemoryVm], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        vm = InMemoryVm()
        await scenario(vm)
        await vm.migrations.end()

    asyncio.run(main())


async def finished(vm: InMemoryVm) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while vm.migrations.active:
            await asyncio.sleep(0.001)
    answer: dict[str, Any] = ask(vm, "query-migrate")
    return answer


def test_migrate_moves_the_guest_and_reports_it(tmp_path: Path) -> None:
    async def scenario(vm: InMemoryVm) -> None:
        events: list[tuple[str, object]] = []
        vm.subscribe(lambda name, data: events.append((name, data.get("status"))))
        target = FakeTarget()
        vm.ram.memory.write(0, b"something")
        destination = Destination(tmp_path / "m", target)
        assert ask(vm, "query-migrate") == {}
        ask(vm, "migrate", uri=f"unix:{tmp_path / 'm'}", unused=False, checksum="none")
        assert "checksum" not in ask(vm, "query-migrate")
        with pytest.raises(QmpError, match="There's a migration process in progress"):
            ask(vm, "migrate", uri="unix:/m")
        with pytest.raises(QmpError, match="There's a migration process in progress"):
            ask(vm, "snapshot-to-file", path="/snapshot")
        answer = await finished(vm)
        destination.join()
        assert answer["status"] == "completed"
        assert answer["downtime"] <= answer["total-time"]
        assert answer["ram"]["total"] == vm.ram_bytes
        assert answer["ram"]["normal"] >= 1
        assert answer["checksum"] == "none"
        assert answer["unused-pages"] == {"skipped": 0, "how": "query disabled"}
        assert target.runs
        assert target.ram is not None
        assert target.ram.page(0)[:9] == b"something"
        assert vm.status == "postmigrate"
        with pytest.raises(QmpError, match="runs on the destination"):
            ask(vm, "cont")
        with pytest.raises(QmpError, match="has migrated"):
            ask(vm, "migrate", uri="unix:/m")
        statuses = [("MIGRATION", s) for s in ("setup", "active", "device", "completed")]
        assert events == [*statuses[:2], ("STOP", None), *statuses[2:]]

    run(scenario)


def test_a_paused_guest_stays_paused_on_the_destination(tmp_path: Path) -> None:
    async def scenario(vm: InMemoryVm) -> None:
        target = FakeTarget()
        ask(vm, "stop")
        destination = Destination(tmp_path / "m", target)
        ask(vm, "migrate", uri=f"unix:{tmp_path / 'm'}")
        assert (await finished(vm))["status"] == "completed"
        destination.join()
        assert target.runs is False

    run(scenario)


def test_the_guest_resumes_if_the_destination_fails_at_the_switchover(tmp_path: Path) -> None:
    async def scenario(vm: InMemoryVm) -> None:
        seen = []

        def fail() -> None:
            seen.append(vm.status)
            with pytest.raises(QmpError, match="for the switchover"):
                ask(vm, "cont")
            raise MigrationError("it has no room")

        destination = Destination(tmp_path / "m", FakeTarget(on_restore=fail))
        ask(vm, "migrate", uri=f"unix:{tmp_path / 'm'}")
        answer = await finished(vm)
        destination.join()
        assert seen == ["finish-migrate"]
        assert answer["status"] == "failed"
        assert answer["error-desc"] == "the destination has aborted: it has no room"
        assert vm.status == "running"

    run(scenario)


@pytest.mark.parametrize("name", CHECKSUMS)
def test_pages_have_the_checksum_that_was_chosen(tmp_path: Path, name: str) -> None:
    async def scenario(vm: InMemoryVm) -> None:
        target = FakeTarget()
        vm.ram.memory.write(0, b"something")
        destination = Destination(tmp_path / "m", target)
        ask(vm, "migrate", uri=f"unix:{tmp_path / 'm'}", checksum=name)
        assert (await finished(vm))["status"] == "completed"
        destination.join()
        assert destination.checksum == name
        assert target.ram is not None
        assert target.ram.page(0)[:9] == b"something"
        assert vm.migrations.settings.checksum == "auto", "it is that of one migration"

    run(scenario)


def test_a_build_without_xxh3_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvmm.migration.outgoing.CHECKSUMS", ("crc32c", "none"))

    async def scenario(vm: InMemoryVm) -> None:
        with pytest.raises(QmpError, match="was built without the checksum xxh3"):
            ask(vm, "migrate", uri="unix:/m", checksum="xxh3")
        assert ask(vm, "query-migrate") == {}

    run(scenario)


def test_migrate_fails_without_a_listener(tmp_path: Path) -> None:
    async def scenario(vm: InMemoryVm) -> None:
        ask(vm, "migrate", uri=f"unix:{tmp_path / 'm'}")
        answer = await finished(vm)
        assert answer["status"] == "failed"
        assert "no destination can be reached" in answer["error-desc"]
        assert vm.status == "running"
        ask(vm, "migrate_cancel")

    run(scenario)


def test_migrate_over_tcp_needs_tls_and_resolves_off_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def getaddrinfo(host: str, *arguments: Any, **options: Any) -> Any:
        assert threading.get_ident() != event_loop, "it would block the guest's devices"
        return original(host, *arguments, **options)

    event_loop, original = threading.get_ident(), socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    async def scenario(vm: InMemoryVm) -> None:
        ask(vm, "migrate", uri="tcp:192.0.2.1:4444")
        answer = await finished(vm)
        assert answer["status"] == "failed"
        assert "there is no TLS" in answer["error-desc"]
        assert vm.status == "running"

    run(scenario)


def test_migrate_cancel_ends_a_migration(tmp_path: Path) -> None:
    async def scenario(vm: InMemoryVm) -> None:
        listener = MigrationListener(UnixAddress(tmp_path / "m"), Security())
        ask(vm, "migrate", uri=f"unix:{tmp_path / 'm'}")
        link = await asyncio.to_thread(accept_connection, listener)
        assert await asyncio.to_thread(link.receive, 1)  # and never send a reply
        assert ask(vm, "migrate_cancel") == {}
        assert ask(vm, "query-migrate")["status"] == "cancelling"
        assert (await finished(vm))["status"] == "cancelled"
        assert vm.status == "running"
        link.close()

    run(scenario)


def test_migrate_cancel_ends_a_migration_that_has_not_connected(tmp_path: Path) -> None:
    """With a listening destination and without one."""

    async def scenario(vm: InMemoryVm) -> None:
        listener = MigrationListener(UnixAddress(tmp_path / "m"), Security())
        for _ in range(2):
            ask(vm, "migrate", uri=f"unix:{tmp_path / 'm'}")
            ask(vm, "migrate_cancel")
            assert ask(vm, "query-migrate")["status"] == "cancelling"
            answer = await finished(vm)
            assert (answer["status"], vm.status) == ("cancelled", "running")
            assert "error-desc" not in answer
            listener.close()

    run(scenario)


def test_qemus_client_library_migrates_a_guest_and_gets_its_events(tmp_path: Path) -> None:
    async def statuses(listener: EventListener) -> list[str]:
        received: list[str] = []
        async with asyncio.timeout(20):
            while not received or received[-1] not in ("completed", "failed", "cancelled"):
                event: Any = await listener.get()
                received.append(event["data"]["status"])
        return received

    async def scenario(vm: InMemoryVm) -> None:
        server = ControlServer(vm, tmp_path / "qmp")
        await server.start()
        client = QMPClient("test")
        await client.connect(str(tmp_path / "qmp"))
        uri = f"unix:{tmp_path / 'm'}"
        try:
            with client.listener("MIGRATION") as listener:
                assert await client.execute("migrate", {"uri": uri}) == {}
                assert await statuses(listener) == ["setup", "failed"]
                target = FakeTarget()
                destination = Destination(tmp_path / "m", target)
                assert await client.execute("migrate", {"uri": uri, "unused": False}) == {}
                assert await statuses(listener) == ["setup", "active", "device", "completed"]
                destination.join()
            assert target.runs
            answer: Any = await client.execute("query-migrate")
            assert answer["status"] == "completed"
            answer = await client.execute("query-status")
            assert answer == {"status": "postmigrate", "running": False}
        finally:
            await client.disconnect()
            await server.close()

    run(scenario)


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("migrate", {"uri": "exec:cat"}, "is not an address"),
        ("migrate", {"uri": "unix:/m", "tls-ca": "/ca"}, "must be given together"),
        ("migrate", {}, "'uri' is missing"),
        ("migrate", {"uri": "unix:/m", "unused": 0}, "'unused', expected: boolean"),
        ("migrate", {"uri": "unix:/m", "checksum": "md5"}, "'checksum' expects 'auto', 'crc32c'"),
        ("migrate", {"uri": "unix:/m", "multifd-channels": 17}, "range of 1 to 16"),
        ("migrate", {"uri": "unix:/m", "multifd-channels": True}, "'multifd-channels', expected"),
        ("migrate", {"uri": "tcp:127.0.0.1:1", "checksum": "none"}, "over unix sockets only"),
        ("migrate-set-parameters", {"max-bandwidth": 1000}, "'max-bandwidth' expects 0 or"),
        ("migrate-set-parameters", {"max-bandwidth": -1}, "'max-bandwidth' expects 0 or"),
        ("migrate-set-parameters", {"downtime-limit": 2_000_001}, "in the range of 0 to 2000000"),
        ("migrate-set-parameters", {"throttle-trigger-threshold": 101}, "range of 1 to 100"),
        ("migrate-set-parameters", {"cpu-throttle-initial": 0}, "range of 1 to 99"),
        ("migrate-set-parameters", {"cpu-throttle-increment": 100}, "range of 1 to 99"),
        ("migrate-set-parameters", {"max-cpu-throttle": 19}, "'max-cpu-throttle'.*20 to 99"),
        ("migrate-set-parameters", {"max-cpu-throttle": 100}, "'max-cpu-throttle'.*20 to 99"),
        ("migrate-set-capabilities", {"capabilities": ["auto-converge"]}, r"capabilities\[0\]"),
        ("migrate-set-capabilities", {"capabilities": [{"state": True}]}, r"capabilities\[0\]"),
        (
            "migrate-set-capabilities",
            {"capabilities": [{"capability": "xbzrle", "state": True}]},
            "'capability' does not accept value 'xbzrle'",
        ),
        (
            "migrate-set-capabilities",
            {"capabilities": [{"capability": "auto-converge", "state": 1}]},
            "expected: boolean",
        ),
    ],
)
def test_invalid_arguments_are_rejected(
    command: str, arguments: dict[str, Any], message: str
) -> None:
    async def scenario(vm: InMemoryVm) -> None:
        with pytest.raises(QmpError, match=message):
            ask(vm, command, **arguments)
        assert ask(vm, "query-migrate") == {}

    run(scenario)


def test_migration_parameters_can_be_set_and_queried() -> None:
    async def scenario(vm: InMemoryVm) -> None:
        values = {
            "max-bandwidth": 0,
            "downtime-limit": 300,
            "throttle-trigger-threshold": 50,
            "cpu-throttle-initial": 20,
            "cpu-throttle-increment": 10,
            "max-cpu-throttle": 99,
        }
        assert ask(vm, "query-migrate-parameters") == values
        for name, value in {
            "downtime-limit": 50,
            "max-bandwidth": 1 << 30,
            "throttle-trigger-threshold": 100,
            "cpu-throttle-initial": 40,
            "cpu-throttle-increment": 5,
            "max-cpu-throttle": 40,
        }.items():
            ask(vm, "migrate-set-parameters", **{name: value})
            values[name] = value
            assert ask(vm, "query-migrate-parameters") == values

    run(scenario)


def test_migration_capabilities_can_be_set_and_queried(tmp_path: Path) -> None:
    async def scenario(vm: InMemoryVm) -> None:
        capability = {"capability": "auto-converge", "state": False}
        assert ask(vm, "query-migrate-capabilities") == [capability]
        ask(vm, "migrate-set-capabilities", capabilities=[{**capability, "state": True}])
        assert ask(vm, "query-migrate-capabilities") == [{**capability, "state": True}]
        assert vm.migrations.settings.auto_converge
        ask(vm, "migrate", uri=f"unix:{tmp_path / 'm'}")
        with pytest.raises(QmpError, match="There's a migration process in progress"):
            ask(vm, "migrate-set-capabilities", capabilities=[])

    run(scenario)


def test_query_migrate_reports_auto_converge_which_ends_with_the_migration(tmp_path: Path) -> None:
    """The guest writes the same pages in every round, so that the migration does not converge."""

    async def scenario(vm: InMemoryVm) -> None:
        on = {"capability": "auto-converge", "state": True}
        ask(vm, "migrate-set-capabilities", capabilities=[on])
        ask(vm, "migrate-set-parameters", **{"cpu-throttle-initial": 30, "downtime-limit": 0})
        for pfn in range(64):
            vm.ram.memory.write(pfn * 4096, b"something")
        vm.written = PageRuns([(0, 64)])
        destination = Destination(tmp_path / "m", FakeTarget())
        ask(vm, "migrate", uri=f"unix:{tmp_path / 'm'}", unused=False)
        async with asyncio.timeout(20):
            while "cpu-throttle-percentage" not in (answer := ask(vm, "query-migrate")):
                await asyncio.sleep(0.001)
        assert answer["cpu-throttle-percentage"] == 30
        assert answer["ram"]["dirty-sync-count"] > 2
        assert answer["ram"]["dirty-pages-rate"] > 0
        ask(vm, "migrate_cancel")
        answer = await finished(vm)
        destination.join()
        assert answer["status"] == "cancelled"
        assert "cpu-throttle-percentage" not in answer
        assert vm.throttled == [30, 0]

    run(scenario)


def test_limits_can_be_changed_during_a_migration(tmp_path: Path) -> None:
    """A migration that does not converge does with a higher downtime limit."""

    async def scenario(vm: InMemoryVm) -> None:
        ask(vm, "migrate-set-parameters", **{"downtime-limit": 0})
        vm.ram.memory.write(0, b"something" * (1 << 18))
        vm.written = PageRuns([(0, 64)])
        destination = Destination(tmp_path / "m", FakeTarget())
        ask(vm, "migrate", uri=f"unix:{tmp_path / 'm'}", unused=False)
        ask(vm, "migrate-set-parameters", **{"max-bandwidth": 1 << 40})  # before the connection
        async with asyncio.timeout(20):
            while ask(vm, "query-migrate")["ram"]["dirty-sync-count"] < 3:
                await asyncio.sleep(0.001)
        ask(vm, "migrate-set-parameters", **{"downtime-limit": 2_000_000})
        answer = await finished(vm)
        destination.join()
        assert answer["status"] == "completed"
        assert ask(vm, "query-migrate-parameters")["downtime-limit"] == 2_000_000

    run(scenario)


def test_a_migration_waits_for_a_restored_guests_memory(tmp_path: Path) -> None:
    """A restored guest can be migrated before all of its memory has been loaded."""

    class Restored(InMemoryVm):
        async def memory_loaded(self) -> None:
            await asyncio.sleep(0.05)
            self.ram.memory.write(0, b"something")

    async def main() -> None:
        vm, target = Restored(), FakeTarget()
        destination = Destination(tmp_path / "m", target)
        ask(vm, "migrate", uri=f"unix:{tmp_path / 'm'}", unused=False)
        assert (await finished(vm))["status"] == "completed"
        destination.join()
        assert target.ram is not None
        assert target.ram.page(0)[:9] == b"something"

    asyncio.run(main())


def test_the_end_of_the_vm_cancels_a_migration(tmp_path: Path) -> None:
    async def scenario(vm: InMemoryVm) -> None:
        listener = MigrationListener(UnixAddress(tmp_path / "m"), Security())
        ask(vm, "migrate", uri=f"unix:{tmp_path / 'm'}")
        link = await asyncio.to_thread(accept_connection, listener)
        assert await asyncio.to_thread(link.receive, 1)  # and never send a reply
        vm.quit()
        async with asyncio.timeout(20):
            await vm.migrations.end()
        assert ask(vm, "query-migrate")["status"] == "cancelled"
        assert vm.status == "shutdown"
        with pytest.raises(QmpError, match="has ended"):
            ask(vm, "migrate", uri=f"unix:{tmp_path / 'm'}")
        link.close()

    run(scenario)


def test_a_migration_for_which_there_is_no_thread_fails(tmp_path: Path) -> None:
    async def scenario(vm: InMemoryVm) -> None:
        with refused_threads():
            ask(vm, "migrate", uri=f"unix:{tmp_path / 'm'}")
            answer = await finished(vm)
        assert answer["status"] == "failed"
        assert answer["error-desc"] == "the host lets this process start no more threads"
        assert vm.status == "running"

    run(scenario)
