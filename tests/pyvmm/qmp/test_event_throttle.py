# SPDX-License-Identifier: Apache-2.0
"""The rate limit of events, with a fake clock."""

from collections.abc import Callable

from pyvmm.qmp.event_throttle import EventThrottle


class Clock:
    """A fake of the event loop's `call_later`, whose time passes by `advance`."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._due: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        self._due.append((self.now_s + delay_s, callback))

    def advance(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while due := [entry for entry in self._due if entry[0] <= end_s]:
            entry = min(due, key=lambda entry: entry[0])
            self._due.remove(entry)
            self.now_s = entry[0]
            entry[1]()
        self.now_s = end_s


def test_the_throttle_sends_the_first_value_at_once_and_always_the_last() -> None:
    clock, sent = Clock(), list[tuple[float, int]]()
    throttle: EventThrottle[int] = EventThrottle(
        1.0, lambda value: sent.append((clock.now_s, value)), clock.call_later
    )
    for value in range(25):
        throttle.offer(value)
        clock.advance(1 / 8)
    clock.advance(1)
    assert [value for _, value in sent] == [0, 7, 15, 23, 24]
    assert [at_s for at_s, _ in sent] == [0, 1, 2, 3, 4]
    clock.advance(5)
    throttle.offer(99)
    assert sent[-1] == (clock.now_s, 99)


def test_flushing_the_throttle_sends_a_pending_value_once() -> None:
    clock, sent = Clock(), list[int]()
    throttle: EventThrottle[int] = EventThrottle(1.0, sent.append, clock.call_later)
    throttle.offer(1)
    throttle.offer(2)
    throttle.flush()
    clock.advance(5)
    assert sent == [1, 2]
