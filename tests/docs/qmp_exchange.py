# SPDX-License-Identifier: Apache-2.0
"""Exchanges with a QMP server, for the examples of the reference.

`exchanges` sends requests to a server on a unix socket, whose VM has no guest but drivers that
respond. `python -m tests.docs.qmp_exchange` records them in docs/reference/qmp-examples.json.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pyvmm.migration.progress import MigrationProgress
from pyvmm.qmp.server import ControlServer
from pyvmm.units import GIB, MIB
from pyvmm_docs.qmp_reference import EXAMPLES, Example
from tests.pyvmm.migration.migration_destination import Destination
from tests.pyvmm.migration.migration_guest import FakeTarget
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm

SNAPSHOT, DESTINATION = "/tmp/vm.snapshot", "/tmp/migration"
"""Paths in examples; the paths that are used are in a directory of the test."""
_PATH = {"path": "/machine/peripheral/balloon0"}
_BALLOON = "/machine/peripheral/balloon0/virtio-backend"
_INTERVAL = {**_PATH, "property": "guest-stats-polling-interval"}


class Recorder:
    """A client that records what it sends and receives."""

    def __init__(self, vm: InMemoryVm, directory: Path) -> None:
        self.vm = vm
        self.examples: list[Example] = []
        self._directory = directory
        self._events: list[dict[str, Any]] = []

    async def connect(self) -> None:
        """Connect, and negotiate as the first exchange."""
        path = self._directory / "qmp"
        self._reader, self._writer = await asyncio.open_unix_connection(path, limit=1 << 22)
        await self._receive()
        await self.ask("qmp_capabilities")

    async def ask(self, command: str, **arguments: Any) -> Any:
        """Record an exchange; return the value or None."""
        request = {"execute": command, **({"arguments": arguments} if arguments else {})}
        self._writer.write(self._with_real_paths(json.dumps(request)).encode())
        while "event" in (reply := await self._receive()):
            self._events.append(reply)
        self.examples.append(Example(command, request, reply))
        return reply.get("return")

    async def event(self, name: str) -> None:
        """Record the next event called `name`; forget those before it."""
        while True:
            event = self._events.pop(0) if self._events else await self._receive()
            if event.get("event") == name:
                self.examples.append(Example(name, None, event))
                return

    async def until(self, command: str, **members: Any) -> None:
        """Repeat a query until it returns `members`; record the last exchange only."""
        while True:
            value = await self.ask(command)
            if members.items() <= value.items():
                return
            self.examples.pop()
            await asyncio.sleep(0.01)

    async def _receive(self) -> dict[str, Any]:
        line = await asyncio.wait_for(self._reader.readline(), 30)
        message: dict[str, Any] = json.loads(self._with_shown_paths(line.decode()))
        return message

    def _with_real_paths(self, text: str) -> str:
        return text.replace("/tmp/", f"{self._directory}/")

    def _with_shown_paths(self, text: str) -> str:
        return text.replace(f"{self._directory}/", "/tmp/")


def exchanges() -> list[Example]:
    """Return the exchanges of all commands and the events, with a server of today."""

    async def main(directory: Path) -> list[Example]:
        vm = InMemoryVm()
        server = ControlServer(vm, directory / "qmp")
        await server.start()
        recorder = Recorder(vm, directory)
        try:
            await recorder.connect()
            await _status_and_balloon(recorder)
            await _guest_requests(recorder)
            await _virtio(recorder)
            await _object_model(recorder)
            await _snapshot(recorder)
            await _watch(recorder)
            await _migration(recorder, directory)
            await _end(recorder)
        finally:
            await server.close()
            await vm.migrations.end()
        return recorder.examples

    with TemporaryDirectory() as directory:
        return asyncio.run(main(Path(directory)))


async def _status_and_balloon(recorder: Recorder) -> None:
    queries = (
        "version",
        "status",
        "memory-size-summary",
        "memory-backing",
        "cpus-fast",
        "commands",
    )
    for query in queries:
        await recorder.ask(f"query-{query}")
    await recorder.ask("x-query-counters")
    await recorder.ask("stop")
    await recorder.event("STOP")
    await recorder.ask("cont")
    await recorder.event("RESUME")
    await recorder.ask("balloon", value=256 * MIB)
    await recorder.event("BALLOON_CHANGE")
    await recorder.ask("balloon", value=2 * GIB)
    await recorder.until("query-balloon", actual=256 * MIB)


async def _guest_requests(recorder: Recorder) -> None:
    await recorder.ask("query-balloon-stats", timeout=5)
    recorder.vm.misc_guest.unused = {*range(100_000, 120_000), *range(200_000, 200_512)}
    await recorder.ask("query-unused-pages", runs=2, cells=4)
    await recorder.ask("query-free-page-hints", timeout=2.5, runs=1, cells=2)
    await recorder.ask("balloon-sync-filesystems")
    await recorder.ask("balloon-drop-caches")
    recorder.vm.status = "paused"
    await recorder.ask("balloon-drop-caches")
    recorder.vm.status = "running"


async def _virtio(recorder: Recorder) -> None:
    await recorder.ask("x-query-virtio")
    await recorder.ask("x-query-virtio-status", path=_BALLOON)
    queue = {"path": _BALLOON, "queue": 3}
    await recorder.ask("x-query-virtio-queue-status", **queue)
    await recorder.ask("x-query-virtio-queue-element", **queue, index=0)
    await recorder.ask("x-query-virtio-vhost-queue-status", **queue)


async def _object_model(recorder: Recorder) -> None:
    await recorder.ask("qom-list", **_PATH)
    await recorder.ask("qom-set", **_INTERVAL, value=2)
    await recorder.ask("qom-get", **_INTERVAL)
    await recorder.ask("qom-get", **_PATH, property="guest-stats")
    await recorder.ask("qom-set", **_INTERVAL, value=0)
    recorder.examples.pop()


async def _snapshot(recorder: Recorder) -> None:
    await recorder.ask("query-snapshot")
    recorder.vm.ram.memory.write(4096, b"contents")
    await recorder.ask("snapshot-to-file", path=SNAPSHOT, timeout=5)
    await recorder.until("query-snapshot", status="completed")
    await recorder.ask("snapshot-to-file", path="/proc/vm.snapshot")
    recorder.examples.pop()
    await recorder.until("query-snapshot", status="failed")


async def _migration(recorder: Recorder, directory: Path) -> None:
    await recorder.ask("query-migrate-parameters")
    await recorder.ask("migrate-set-parameters", **{"downtime-limit": 200})
    await recorder.ask("migrate-set-parameters", **{"max-cpu-throttle": 10})
    capability = {"capability": "auto-converge", "state": True}
    await recorder.ask("migrate-set-capabilities", capabilities=[capability])
    await recorder.ask("query-migrate-capabilities")
    await recorder.ask("migrate", uri="tcp:192.0.2.1:4444", checksum="none")
    await recorder.ask("migrate", uri="unix:/tmp/no-destination")
    recorder.examples.pop()
    await recorder.until("query-migrate", status="failed")
    recorder.vm.migrations.status, recorder.vm.migrations.error = "active", ""
    recorder.vm.migrations.progress = _progress()
    await recorder.ask("query-migrate")
    destination = Destination(directory / Path(DESTINATION).name, FakeTarget())
    await recorder.ask("migrate", uri=f"unix:{DESTINATION}")
    await recorder.event("MIGRATION")
    await recorder.until("query-migrate", status="completed")
    destination.join()
    await recorder.ask("cont")
    await recorder.ask("migrate_cancel")


def _progress() -> MigrationProgress:
    """Return the progress of a migration with auto-converge in its third round."""
    return MigrationProgress(
        begun_at=time.monotonic() - 4.2,
        unused_how="answered on the misc queue",
        skipped_pages=150_000,
        full_pages=110_000,
        zero_pages=2_000,
        collected_pages=9_000,
        remaining_pages=4_000,
        rounds=2,
        sent_bytes=460_000_000,
        bandwidth=1.1e8,
        dirty_pages_rate=15_000,
        checksum="crc32c",
        throttle_percentage=20,
    )


async def _watch(recorder: Recorder) -> None:
    await recorder.ask("x-trace-start")
    recorder.vm.tracer.event("balloon.target", pages=1024)
    await recorder.ask("x-trace-read", timeout=5)
    await recorder.ask("x-trace-step", kinds=["register_write"], device="balloon", queue="inflate")
    fields: dict[str, int | str] = {"table": "balloon.notify", "register": "queue0", "value": 0}
    recorder.vm.tracer.event("register_write", **fields)
    await recorder.event("X_TRACE_STEP")
    await recorder.ask("cont")
    await recorder.ask("x-trace-stop")
    recorder.vm.ram.memory.write(0x1000, b"available")
    await recorder.ask("x-read-memory", gpa=0x1000, size=16)
    await recorder.ask("x-read-memory", gpa=1 << 40, size=16)
    await recorder.ask("x-query-page-states", **{"pages-per-cell": 65536})
    await recorder.ask("x-query-pci-registers", device="balloon")


async def _end(recorder: Recorder) -> None:
    await recorder.ask("quit")
    await recorder.event("SHUTDOWN")
    recorder.vm.announce("GUEST_PANICKED", {"action": "poweroff"})
    await recorder.event("GUEST_PANICKED")


def record() -> None:
    """Write the exchanges of today to the file of the examples."""
    lines = [json.dumps(each._asdict()) for each in exchanges()]
    EXAMPLES.write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    record()
