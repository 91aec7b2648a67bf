# SPDX-License-Identifier: Apache-2.0
"""A client watches a real guest, stops it at a notification, and reads its rings meanwhile."""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvmm.qmp.client import QmpClient
from pyvmm.trace.recording_format import decode_chunk, decode_chunk_header
from pyvmm.trace.stream import TraceEvent, events_of
from pyvmm.units import MIB
from tests.kvm.pyvmm_process import RunProcess

pytestmark = pytest.mark.kvm

RAM = 256 * MIB
INFLATE = {"device": "balloon", "queue": "inflate"}


class Watcher:
    """A client that watches a guest; keeps all events it has read."""

    def __init__(self, client: QmpClient) -> None:
        self.client = client
        self.events: list[TraceEvent] = []
        self.client.execute("x-trace-start")

    def read(self, timeout_s: float = 0.2) -> None:
        """Read the events that there are."""
        found = self.client.execute("x-trace-read", timeout=timeout_s)
        assert found["dropped"] == 0
        if found["chunk"] is not None:
            data = base64.b64decode(found["chunk"])
            header = decode_chunk_header(data)
            assert header is not None
            self.events += events_of(decode_chunk(header, data))

    def drain(self) -> None:
        """Read events until there are none."""
        count = -1
        while count < len(self.events):
            count = len(self.events)
            self.read(0.5)

    def read_until(self, true: Callable[[], bool]) -> None:
        """Read events until `true()`."""
        deadline = time.monotonic() + 60
        while not true():
            assert time.monotonic() < deadline
            self.read()

    def is_paused(self) -> bool:
        return str(self.client.execute("query-status")["status"]) == "paused"

    def actual(self) -> int:
        return int(self.client.execute("query-balloon")["actual"])

    def page_states(self) -> list[int]:
        """Return the counts of all cells together."""
        found = self.client.execute("x-query-page-states")
        rows = struct.iter_unpack("<Q5I", base64.b64decode(found["cells"]))
        return [sum(column) for column in list(zip(*rows, strict=True))[1:]]

    def rings(self) -> tuple[int, int, int]:
        """Return the available index, the next one of the device, and the used index."""
        registers = self.client.execute("x-query-pci-registers", device="balloon")
        (queue,) = [each for each in registers["queues"] if each["name"] == "inflate"]
        indices = []
        for part in ("driver", "device"):
            read = self.client.execute("x-read-memory", gpa=queue[part], size=4)
            indices.append(struct.unpack("<HH", base64.b64decode(read["data"]))[1])
        return indices[0], int(queue["next-avail"]), indices[1]


@pytest.fixture
def watcher(guest_image: Path, directory: Path) -> Iterator[Watcher]:
    qmp = directory / "qmp"
    options = ("--memory", RAM, "--append", 'loglevel=4 pyvmm.run="pattern"')
    with RunProcess(guest_image, *options, "--qmp", f"unix:{qmp}") as guest:
        guest.expect("user space up")
        with QmpClient(qmp) as client:
            yield Watcher(client)
            client.execute("quit")
        guest.status()


def test_a_client_sees_an_inflate_as_it_happens(watcher: Watcher) -> None:
    watcher.client.execute("balloon", value=128 * MIB)
    watcher.read_until(lambda: watcher.actual() == 128 * MIB)
    watcher.drain()
    kinds = {event.kind for event in watcher.events if event.device == "balloon"}
    assert kinds >= {"target", "chain", "inflate", "used", "actual", "notified", "interrupt"}
    pages = sum(int(e.fields["pages"]) for e in watcher.events if e.kind == "inflate")
    assert pages * 4096 >= 128 * MIB
    assert [event.seq for event in watcher.events] == [*range(len(watcher.events))]


def test_the_map_of_memory_loses_the_pages_of_an_inflate(watcher: Watcher) -> None:
    before = watcher.page_states()
    watcher.client.execute("balloon", value=128 * MIB)
    watcher.read_until(lambda: watcher.actual() == 128 * MIB)
    resident, balloon, _, untouched, _ = watcher.page_states()
    assert balloon - before[1] == 128 * MIB // 4096
    assert resident <= before[0]
    assert resident + balloon + untouched == RAM // 4096


def test_a_notification_stops_the_guest_before_its_buffer_is_used(watcher: Watcher) -> None:
    """Four times, at either event; no notification is lost, so the guest inflates to the end."""
    target = 250 * MIB
    for number, kind in enumerate(["register_write", "notified"] * 2):
        target -= 4 * MIB
        watcher.client.execute("x-trace-step", kinds=[kind], **INFLATE)
        watcher.client.execute("balloon", value=target)
        watcher.read_until(watcher.is_paused)
        watcher.drain()
        last = [event for event in watcher.events if event.kind == kind][-1]
        if kind == "register_write":
            assert (last.fields["table"], last.fields["register"]) == ("balloon.notify", "queue0")
        rings = available, next_avail, used = watcher.rings()
        assert (available - next_avail) & 0xFFFF > 0, number
        assert next_avail == used
        watcher.read(1.0)
        assert watcher.rings() == rings
        after = {event.kind for event in watcher.events if event.seq > last.seq}
        assert not after & {"chain", "used", "descriptor"}
        watcher.client.execute("cont")
        watcher.read_until(lambda: watcher.actual() == target)  # noqa: B023 (called at once)


def test_the_guest_runs_again_without_a_client_that_reads(watcher: Watcher) -> None:
    step: dict[str, Any] = {"kinds": ["register_write"], **INFLATE}
    watcher.client.execute("x-trace-step", **step)
    watcher.client.execute("balloon", value=200 * MIB)
    watcher.read_until(watcher.is_paused)
    begin = time.monotonic()
    while watcher.is_paused():
        assert time.monotonic() - begin < 30
        time.sleep(0.2)
    assert time.monotonic() - begin > 8
    watcher.read_until(lambda: watcher.actual() == 200 * MIB)
