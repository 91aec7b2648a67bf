# SPDX-License-Identifier: Apache-2.0
"""The driver's side of the balloon's misc queue, in Python: what a guest's kernel does, or should.

driver = MiscDriver(started(BITMAP))
driver.offer()
balloon.misc.ask(Command.GET_UNUSED_PAGES, answers.append)
(question,) = driver.questions()
driver.answer(question, [1, 2, 3])
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from devices.balloon.dialects import BITMAP
from devices.testing.balloon.requests import bitmap_request
from devices.testing.board import AnonymousRam
from devices.testing.driver import ALL_FEATURES, VirtioDriver, probed
from devices.testing.driver_queue import Used

MISC = 3
CONT, DONE, UNSUPPORTED = 0, 1, 2
GET_UNUSED_PAGES, DROP_CACHE, SYNC = 0, 1, 2


class Question(NamedTuple):
    """`struct virtio_balloon_misc_req` as the driver reads it."""

    cmd: int
    id: int


class MiscDriver:
    """Drives queue MISC of a balloon that `driver` has started; keeps what came back."""

    def __init__(self, driver: VirtioDriver) -> None:
        self.driver = driver
        self.used: list[Used] = []
        """Buffers returned for messages and refused offers, in order."""
        self._offered: set[int] = set()
        self._questions: list[Question] = []

    def offer(self, *sizes: int, readable: Sequence[bytes] = ()) -> None:
        """Offer a buffer for a question: one element of 16 bytes, or of `sizes`."""
        queue = self.driver.queues[MISC]
        self._offered.add(queue.add(readable, sizes or (16,)))
        self._go()

    def answer(
        self, question: Question | None, pfns: Iterable[int] = (), **header: int
    ) -> list[Used]:
        """Send one message about `pfns`, DONE unless `flag` says otherwise; returns what came."""
        if question is not None:
            header = {"cmd": question.cmd, "req_id": question.id} | header
        return self.send(bitmap_request(pfns, **({"flag": DONE} | header)))

    def send(self, message: Sequence[bytes]) -> list[Used]:
        """Send any device-readable bytes."""
        before = len(self.used)
        self.driver.queues[MISC].add(message)
        self._go()
        return self.used[before:]

    def questions(self) -> list[Question]:
        """Questions that have come since last asked for."""
        self._collect()
        questions, self._questions = self._questions, []
        return questions

    def _go(self) -> None:
        self.driver.kick(MISC)
        self.driver.board.serve()
        self._collect()

    def _collect(self) -> None:
        for used in self.driver.queues[MISC].take_used():
            if used.head in self._offered and used.length:
                assert used.length == 16, "the used length of a question is 16"
                cmd, reserved, param = struct.unpack("<H6sQ", used.data)
                assert reserved == bytes(6)
                self._questions.append(Question(cmd, param))
            else:
                self.used.append(used)
            self._offered.discard(used.head)


class MiscGuest:
    """A board with a balloon and a guest that answers what it is asked, as ours does.

    `unused` are the page frames it does not use, `cached` those that dropping its caches would free
    and `dirty` those that must be synced before; `knows` are the commands of its driver. Whoever
    wants answers calls `answer`; it is silent otherwise.
    """

    def __init__(self, *ram_ranges: tuple[int, int]) -> None:
        self.driver = probed(BITMAP, AnonymousRam(*ram_ranges))
        self.board = self.driver.board
        self.unused: set[int] = set(range(1024, 2048))
        self.cached: set[int] = set()
        self.dirty: set[int] = set()
        self.knows = {GET_UNUSED_PAGES, DROP_CACHE, SYNC}
        self.asked: list[Question] = []

    def start(self, wanted: int = ALL_FEATURES) -> MiscGuest:
        """Bring the device up (again) and offer a buffer."""
        self.misc = MiscDriver(self.driver.start(wanted=wanted))
        if MISC in self.driver.queues:
            self.misc.offer()
        return self

    def answer(self) -> None:
        """Answer the question that has come, if one has, and offer the buffer again."""
        for question in self.misc.questions():
            self.asked.append(question)
            self._answer(question)
            self.misc.offer()

    def _answer(self, question: Question) -> None:
        if question.cmd not in self.knows:
            self.misc.answer(question, flag=UNSUPPORTED)
        elif question.cmd == GET_UNUSED_PAGES:
            half = sorted(self.unused)[: len(self.unused) // 2]
            self.misc.answer(question, half, flag=CONT)
            self.misc.answer(question, self.unused.difference(half))
        else:
            if question.cmd == SYNC:
                self.dirty.clear()
            else:
                self.unused |= self.cached - self.dirty
                self.cached &= self.dirty
            self.misc.answer(question)
