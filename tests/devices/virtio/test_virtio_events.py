# SPDX-License-Identifier: Apache-2.0
"""The events of a virtio device that is watched, against what its driver has done.

The device is not one of the catalogue's: it has no code for its events.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from devices.testing import AnonymousRam, Board, RecordingTracer, VirtioDriver
from devices.testing.driver_queue import INDIRECT, NEXT, WRITE, DriverQueue
from devices.virtio.device import VirtioDevice
from devices.virtio.features import EVENT_IDX, INDIRECT_DESC, VERSION_1
from devices.virtio.queue import QueueSpec
from pyvmm.trace.stream import TraceEvent, events_of
from pyvmm_native.events import EventBuffer
from pyvmm_native.ring import Chain

PLAIN = VERSION_1 | INDIRECT_DESC


class Echo(VirtioDevice):
    """Returns each request."""

    def __init__(self, ram: AnonymousRam, tracer: RecordingTracer) -> None:
        super().__init__(
            device_id=63,
            name="echo",
            queues=[QueueSpec("in"), QueueSpec("out")],
            memory=ram.memory,
            tracer=tracer,
        )

    def serve(self, queue: int, chain: Chain) -> int:
        return chain.write(chain.readable[: chain.writable_bytes])


class EchoDriver(VirtioDriver):
    """Driver of an `Echo` whose events `taken` returns."""

    def __init__(self) -> None:
        self.buffer = EventBuffer()
        tracer = RecordingTracer(self.buffer)
        super().__init__(Board(Echo(AnonymousRam(), tracer), tracer))
        self.buffer.start()

    def taken(self, *kinds: str) -> list[TraceEvent]:
        batch = self.buffer.take()
        events = list(events_of(batch)) if batch else []
        first = events[0].seq if events else 0
        assert [event.seq for event in events] == [*range(first, first + len(events))]
        assert [event.time_ns for event in events] == sorted(event.time_ns for event in events)
        return [event for event in events if event.kind in kinds]


def fields(events: Sequence[TraceEvent]) -> list[dict[str, int | str]]:
    return [event.fields for event in events]


@pytest.fixture
def driver() -> EchoDriver:
    return EchoDriver()


def test_initialisation_is_a_sequence_of_events(driver: EchoDriver) -> None:
    driver.start(features=PLAIN, queues=[1], size=8)
    events = driver.taken("status", "features", "queue_live")
    assert {event.device for event in events} == {"echo"}
    assert [event.fields["names"] for event in events if event.kind == "status"] == [
        "RESET",
        "ACKNOWLEDGE",
        "ACKNOWLEDGE|DRIVER",
        "ACKNOWLEDGE|DRIVER|FEATURES_OK",
        "ACKNOWLEDGE|DRIVER|DRIVER_OK|FEATURES_OK",
    ]
    (features,) = [event.fields for event in events if event.kind == "features"]
    assert features["accepted"] == PLAIN
    assert features["accepted_names"] == "INDIRECT_DESC|VERSION_1"
    assert "EVENT_IDX" in str(features["offered_names"])
    (live,) = [event for event in events if event.kind == "queue_live"]
    queue = driver.queues[1]
    assert live.queue == "out"
    assert live.fields == {
        "queue": "out",
        "index": 1,
        "size": 8,
        "desc_gpa": queue.desc_gpa,
        "driver_gpa": queue.avail_gpa,
        "device_gpa": queue.used_gpa,
        "event_idx": 0,
        "indirect": 1,
    }


def test_registers_are_read_and_written_by_name(driver: EchoDriver) -> None:
    driver.probe()
    driver.taken()
    driver.write_common("queue_select", 1)
    assert driver.read_common("queue_size") == 256
    events = driver.taken("register_read", "register_write")
    assert [(event.kind, event.device) for event in events] == [
        ("register_write", "echo"),
        ("register_read", "echo"),
    ]
    assert fields(events) == [
        {"table": "echo.common", "register": "queue_select", "value": 1},
        {"table": "echo.common", "register": "queue_size", "value": 256},
    ]


def test_pci_configuration_and_msix_table_are_registers(driver: EchoDriver) -> None:
    driver.start()
    events = driver.taken("register_write", "msix_route")
    tables = {event.fields["table"] for event in events if event.kind == "register_write"}
    assert {"echo.pci_config", "echo.msix_table", "echo.msix_capability"} <= tables
    assert fields([event for event in events if event.kind == "msix_route"]) == [
        {"device": "echo", "vector": vector, "address": 0xFEE0_0000, "data": 0x40 + vector}
        for vector in range(3)
    ]


def test_a_chain_is_walked_descriptor_by_descriptor(driver: EchoDriver) -> None:
    driver.start(features=PLAIN)
    queue = driver.queues[0]
    driver.taken()
    before = queue.avail_idx
    driver.send(0, [b"abc", b"de"], [16])
    events = driver.taken("descriptor", "chain", "used")
    assert [event.kind for event in events] == [*["descriptor"] * 3, "chain", "used"]
    assert {(event.device, event.queue) for event in events} == {("echo", "in")}
    written = [descriptor_in(queue, index) for index in range(3)]
    assert [event.fields for event in events[:3]] == [
        {"device": "echo", "queue": "in", "head": 0, "table_gpa": 0, "index": index, **descriptor}
        for index, descriptor in enumerate(written)
    ]
    assert [descriptor["flags"] for descriptor in written] == [NEXT, NEXT, WRITE]
    chain, used = fields(events[3:])
    assert (
        chain
        | {
            "head": 0,
            "avail_index": before,
            "elements": 3,
            "readable_bytes": 5,
            "writable_bytes": 16,
        }
        == chain
    )
    assert used | {"head": 0, "used_index": 0, "length": 5} == used


def descriptor_in(queue: DriverQueue, index: int) -> dict[str, int]:
    """Return the descriptor as the driver has written it."""
    data = queue.memory.read(queue.desc_gpa + 16 * index, 16)
    places = {"gpa": (0, 8), "length": (8, 12), "flags": (12, 14), "next": (14, 16)}
    return {name: int.from_bytes(data[a:b], "little") for name, (a, b) in places.items()}


def test_buffers_taken_as_a_batch_have_the_same_events(driver: EchoDriver) -> None:
    driver.start(features=PLAIN)
    queue = driver.queues[0]
    driver.taken()
    for data in (b"abc", b"defg"):
        queue.add([data])
    ring = driver.board.device.queues[0].ring
    assert ring is not None
    chains = ring.pop_batch(8, 4096)
    ring.rewind(1)
    ring.push_batch(chains[:1])
    events = driver.taken("descriptor", "chain", "used")
    assert [(event.kind, event.fields["head"]) for event in events] == [
        ("descriptor", 0),
        ("chain", 0),
        ("descriptor", 1),
        ("chain", 1),
        ("used", 0),
    ]
    assert [event.fields["avail_index"] for event in events if event.kind == "chain"] == [0, 1]


def test_an_indirect_table_is_walked_too(driver: EchoDriver) -> None:
    driver.start(features=PLAIN)
    driver.taken()
    driver.send(0, [b"abc"], [4], indirect=True)
    outer, first, second = fields(driver.taken("descriptor"))
    assert (outer["flags"], outer["table_gpa"], outer["length"]) == (INDIRECT, 0, 32)
    assert first["table_gpa"] == second["table_gpa"] == outer["gpa"]
    assert (first["index"], second["index"]) == (0, 1)
    assert (first["flags"], second["flags"]) == (NEXT, WRITE)


def test_the_events_of_a_malformed_chain_end_with_its_malformed_descriptor(
    driver: EchoDriver,
) -> None:
    driver.start(features=PLAIN)
    queue = driver.queues[0]
    driver.taken()
    queue.set_desc(0, queue.data_gpa, 8, NEXT, 1)
    queue.set_desc(1, queue.data_gpa, 8, NEXT, 999)
    queue.set_avail_ring(0, 0)
    queue.set_avail_idx(1)
    driver.notify(0)
    driver.board.serve()
    events = driver.taken("descriptor", "chain", "needs_reset", "interrupt")
    assert [event.kind for event in events] == [
        "descriptor",
        "descriptor",
        "needs_reset",
        "interrupt",
    ]
    assert events[1].fields["next"] == 999
    assert "outside the descriptor table" in str(events[2].fields["why"])
    assert events[3].fields["cause"] == "config"


@pytest.mark.parametrize("suppressed", [False, True])
def test_the_interrupt_flag_decides_about_notifications(
    driver: EchoDriver, suppressed: bool
) -> None:
    driver.start(features=PLAIN)
    driver.queues[0].set_avail_flags(int(suppressed))
    driver.taken()
    driver.send(0, [b"abc"], [4])
    events = driver.taken("used_notification", "interrupt", "avail_notifications")
    enabled = [event.fields["enabled"] for event in events if event.kind == "avail_notifications"]
    assert enabled == [0, 1]
    decision = next(event.fields for event in events if event.kind == "used_notification")
    assert (decision["sent"], decision["why"]) == (int(not suppressed), "flag")
    assert (decision["used_index"], decision["buffers"]) == (1, 1)
    interrupts = [event.fields for event in events if event.kind == "interrupt"]
    sent = {"device": "echo", "cause": "in", "how": "msi-x", "vector": 1}
    assert interrupts == ([] if suppressed else [sent])


@pytest.mark.parametrize("used_event", [0, 5])
def test_the_event_index_decides_about_notifications(driver: EchoDriver, used_event: int) -> None:
    driver.start(features=PLAIN | EVENT_IDX)
    driver.queues[0].set_used_event(used_event)
    driver.taken()
    driver.send(0, [b"abc"], [4])
    events = driver.taken("used_notification", "avail_notifications")
    (asked,) = [event.fields for event in events if event.kind == "avail_notifications"]
    assert (asked["enabled"], asked["why"], asked["avail_event"]) == (1, "event index", 1)
    (decision,) = [event.fields for event in events if event.kind == "used_notification"]
    assert (decision["sent"], decision["why"]) == (int(used_event == 0), "event index")
    assert decision["used_event"] == used_event


def test_the_event_of_an_interrupt_gives_the_reason_if_it_is_not_sent(driver: EchoDriver) -> None:
    driver.start(features=PLAIN)
    driver.taken()
    table = driver.read_pci(driver.msix_capability + 4)
    driver.board.mmio.write(driver.bars[table & 7] + (table & ~7) + 16 + 12, 4, 1)
    driver.send(0, [b"abc"], [4])
    driver.write_common("queue_select", 0)
    driver.write_common("queue_msix_vector", 0xFFFF)
    driver.send(0, [b"abc"], [4])
    driver.write_pci(driver.msix_capability + 2, 2, 0)
    driver.send(0, [b"abc"], [4])
    how = [event.fields["how"] for event in driver.taken("interrupt")]
    assert how == ["masked", "no vector", "intx"]


def test_a_queue_reset_is_an_event(driver: EchoDriver) -> None:
    driver.start()
    driver.write_common("queue_select", 1)
    driver.write_common("queue_reset", 1)
    (event,) = driver.taken("queue_reset")
    assert (event.device, event.queue) == ("echo", "out")


def test_events_are_emitted_only_while_the_buffer_is_watched(driver: EchoDriver) -> None:
    driver.start(features=PLAIN)
    driver.buffer.stop()
    driver.send(0, [b"abc"], [4])
    driver.buffer.start()
    assert driver.taken() == []
    driver.send(0, [b"abc"], [4])
    assert len(driver.taken("chain")) == 1
