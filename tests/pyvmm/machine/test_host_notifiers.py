# SPDX-License-Identifier: Apache-2.0
"""Notifications of queues: the eventfds given to KVM, and the work on the event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from devices.testing import RecordingTracer
from pyvmm.machine.host_notifiers import IoeventfdNotifiers
from pyvmm.trace.stream import events_of
from pyvmm_native.events import EventBuffer
from tests.pyvmm.machine.recording_vm import RecordingVm

GPA, OTHER_GPA = 0xC000_3000, 0xC000_7000
WORD = 2
"""A driver writes the 16-bit index of the queue (VIRTIO 1.2, 4.1.5.2)."""

NAMES = ("in", "out")
COUNTS = ("caught", "coalesced", "own")


class NotifiedQueues:
    """The notifiers of `queues` queues; queue n has `work[n]` calls' worth of buffers."""

    def __init__(self, queues: int = 2, tracer: RecordingTracer | None = None) -> None:
        self.recording = RecordingVm()
        self.served: list[int] = []
        self.work = [1] * queues
        self.tracer = tracer or RecordingTracer()
        self.notifiers = IoeventfdNotifiers(
            self.recording.vm, "echo", NAMES[:queues], self._serve, self.tracer
        )

    def _serve(self, queue: int) -> bool:
        self.served.append(queue)
        self.work[queue] -= 1
        return self.work[queue] > 0


@pytest.fixture
def board() -> Iterator[NotifiedQueues]:
    board = NotifiedQueues()
    yield board
    board.notifiers.close()


def test_an_address_is_assigned_moved_and_removed(board: NotifiedQueues) -> None:
    notifiers, assigned = board.notifiers, board.recording.ioeventfds
    notifiers.assign(0, GPA)
    notifiers.assign(1, GPA + 4)
    events = [assigned[GPA, WORD], assigned[GPA + 4, WORD]]
    assert len({*events}) == 2
    notifiers.assign(1, OTHER_GPA)
    assert assigned == {(GPA, WORD): events[0], (OTHER_GPA, WORD): events[1]}
    notifiers.assign(0, None)
    notifiers.assign(1, None)
    notifiers.assign(1, None)
    assert assigned == {}


def test_the_guests_write_and_a_notification_both_have_the_queue_served(
    board: NotifiedQueues,
) -> None:
    async def main() -> None:
        board.notifiers.assign(1, GPA)
        board.notifiers.start(asyncio.get_running_loop())
        os.eventfd_write(board.recording.ioeventfds[GPA, WORD], 1)  # as KVM does
        board.notifiers.notify(0)
        await asyncio.sleep(0.01)
        board.notifiers.stop()

    asyncio.run(main())
    assert sorted(board.served) == [0, 1]


def test_an_event_says_how_many_notifications_kvm_has_coalesced() -> None:
    buffer = EventBuffer()
    board = NotifiedQueues(tracer=RecordingTracer(buffer))
    board.notifiers.assign(1, GPA)
    caught = board.recording.ioeventfds[GPA, WORD]
    buffer.start()

    async def main() -> None:
        board.notifiers.start(asyncio.get_running_loop())
        for own, writes in ((1, 0), (0, 1), (2, 3)):
            for _ in range(writes):
                os.eventfd_write(caught, 1)  # as KVM does
            for _ in range(own):
                board.notifiers.notify(1)
            await asyncio.sleep(0.01)

    asyncio.run(main())
    board.notifiers.close()
    batch = buffer.stop()
    assert batch is not None
    events = [*events_of(batch)]
    assert {(event.device, event.queue, event.kind) for event in events} == {
        ("echo", "out", "notified")
    }
    counts = [tuple(event.fields[name] for name in COUNTS) for event in events]
    assert counts == [(0, 0, 1), (1, 0, 0), (3, 1, 2)]


def test_a_queue_that_is_not_empty_is_served_again_after_the_others(
    board: NotifiedQueues,
) -> None:
    board.work = [3, 3]

    async def main() -> None:
        board.notifiers.notify(0)
        board.notifiers.notify(1)
        board.notifiers.start(asyncio.get_running_loop())
        await asyncio.sleep(0.05)
        board.notifiers.stop()

    asyncio.run(main())
    assert [sorted(board.served[at : at + 2]) for at in (0, 2, 4)] == [[0, 1]] * 3
    assert len(board.served) == 6


def test_notifications_stay_pending_while_the_notifiers_are_stopped(
    board: NotifiedQueues,
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        board.notifiers.start(loop)
        board.notifiers.stop()
        board.notifiers.notify(0)
        await asyncio.sleep(0.01)
        assert board.served == []
        board.notifiers.start(loop)
        await asyncio.sleep(0.01)
        board.notifiers.stop()

    asyncio.run(main())
    assert board.served == [0]


def test_no_address_is_caught_while_notifications_are_register_accesses(
    board: NotifiedQueues,
) -> None:
    notifiers, assigned = board.notifiers, board.recording.ioeventfds
    notifiers.assign(0, GPA)
    before = dict(assigned)
    notifiers.set_caught(False)
    notifiers.set_caught(False)
    assert assigned == {}
    notifiers.assign(1, OTHER_GPA)
    notifiers.assign(1, OTHER_GPA + 4)
    assert assigned == {}
    notifiers.set_caught(True)
    assert assigned.items() >= before.items()
    assert set(assigned) == {(GPA, WORD), (OTHER_GPA + 4, WORD)}
    notifiers.set_caught(False)
    notifiers.assign(0, None)
    notifiers.set_caught(True)
    assert set(assigned) == {(OTHER_GPA + 4, WORD)}


def test_a_guest_held_at_a_notification_finds_it_pending_afterwards() -> None:
    buffer = EventBuffer()
    board = NotifiedQueues(tracer=RecordingTracer(buffer))
    held = [False]
    board.notifiers._held = lambda: held[0]
    buffer.start()

    def hold(seq: int, name: str, fields: object) -> None:
        held[0] = True

    buffer.arm(lambda name: name == "echo.notified", hold)

    async def main() -> None:
        board.notifiers.start(asyncio.get_running_loop())
        board.notifiers.notify(1)
        await asyncio.sleep(0.02)
        board.notifiers.notify(0)
        await asyncio.sleep(0.02)
        assert board.served == []
        buffer.disarm()
        held[0] = False
        await asyncio.sleep(0.02)

    asyncio.run(main())
    board.notifiers.close()
    assert sorted(board.served) == [0, 1]


def test_closed_notifiers_leave_no_eventfd() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    NotifiedQueues(5).notifiers.close()
    assert sorted(os.listdir("/proc/self/fd")) == before
