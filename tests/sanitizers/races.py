# SPDX-License-Identifier: Apache-2.0
"""Pairs of threads that share guest memory, rings and the console's queue, for ThreadSanitizer.

    python -m tests.sanitizers.races [SCENARIO ...]

One thread of each pair is in `two_threads`, without the GIL; the other is in Python, as a device or
a command is. Both check what they get, so a scenario may also fail without a sanitizer.
`tests.sanitizers.run` runs them with one.
"""

from __future__ import annotations

import mmap
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from pyvmm_native import PAGE_BYTES
from pyvmm_native.discard import discard
from pyvmm_native.memory import GuestMemory
from pyvmm_native.ring import SplitQueue
from pyvmm_native.runs import PageRuns
from pyvmm_native.serial import UNLIMITED, ByteQueue, SerialFastPath
from tests.sanitizers.two_threads import Driver, copy_pages, print_characters

MEMORIES = 40
RAM_PAGES = 64
QUEUE_SIZE = 16
MESSAGES = 4_000
NOTIFICATION_LIMIT_S = 20
CHARACTERS = 100_000
QUEUE_BYTES = 4096
PORT, LSR_IDLE = 0x3F8, 0x60


def anonymous_ram() -> GuestMemory:
    return GuestMemory([(0, mmap.mmap(-1, RAM_PAGES * PAGE_BYTES, flags=mmap.MAP_PRIVATE))])


def log_copies() -> None:
    """Start, stop and restart dirty logging while pages are copied into RAM."""
    with ThreadPoolExecutor(1) as other:
        for _ in range(MEMORIES):
            memory = anonymous_ram()
            copying = other.submit(copy_pages, memory, bytes(64), 200)
            while not copying.done():
                memory.log_dirty_pages(True)
                memory.take_dirty_pages()
                memory.log_dirty_pages(False)
            memory.log_dirty_pages(True)
            copy_pages(memory, bytes(64), 1)
            assert memory.take_dirty_pages() == [(0, b"\x55" * (RAM_PAGES // 8))]


def discard_often(memory: GuestMemory, pages: PageRuns) -> None:
    for _ in range(100):
        discard(memory, pages)


def log_discards() -> None:
    """Start and stop dirty logging while pages are discarded."""
    pages = PageRuns([(page, 1) for page in range(1, RAM_PAGES, 2)])
    with ThreadPoolExecutor(1) as other:
        for _ in range(MEMORIES):
            memory = anonymous_ram()
            discarding = other.submit(discard_often, memory, pages)
            while not discarding.done():
                memory.log_dirty_pages(True)
                memory.take_dirty_pages()
                memory.log_dirty_pages(False)
            memory.log_dirty_pages(True)
            discard(memory, pages)
            assert memory.take_dirty_pages() == [(0, b"\xaa" * (RAM_PAGES // 8))]


def answer(queue: SplitQueue, driver: Driver) -> None:
    """Return every message inverted; wait for a notification when there is none."""
    answered = 0
    while answered < MESSAGES:
        notifications = driver.notifications
        chain = queue.pop(PAGE_BYTES)
        if chain is not None:
            queue.disable_notifications()
            chain.write(bytes(byte ^ 0xFF for byte in chain.readable))
            queue.push(chain, chain.writable_bytes)
            queue.should_interrupt()
            answered += 1
        elif not queue.enable_notifications():
            await_notification(driver, notifications)


def await_notification(driver: Driver, seen: int) -> None:
    limit = time.monotonic() + NOTIFICATION_LIMIT_S
    while driver.notifications == seen:
        assert time.monotonic() < limit, "a notification was lost"
        time.sleep(0)


def exchange(event_idx: bool) -> None:
    memory = anonymous_ram()
    driver = Driver(memory, QUEUE_SIZE, PAGE_BYTES, event_idx)
    areas = (0, PAGE_BYTES, 2 * PAGE_BYTES)
    queue = SplitQueue(memory, QUEUE_SIZE, *areas, event_idx=event_idx)
    with ThreadPoolExecutor(1) as other:
        wrong = other.submit(driver.run, MESSAGES)
        answer(queue, driver)
        assert wrong.result() == 0


def ring() -> None:
    """Answer a driver that checks the replies, with flags to suppress notifications."""
    exchange(event_idx=False)


def ring_with_event_index() -> None:
    """Answer a driver that checks the replies, with VIRTIO_F_EVENT_IDX."""
    exchange(event_idx=True)


def print_all(queue: ByteQueue, fast_path: SerialFastPath) -> None:
    done = 0
    while done < CHARACTERS:
        done += print_characters(fast_path, PORT, done, CHARACTERS - done)
        if done < CHARACTERS:
            queue.put(bytes([done & 0xFF]))
            done += 1


def console() -> None:
    """Take what a vCPU prints, and change what the fast path may serve, while it prints."""
    queue = ByteQueue(lambda: None, QUEUE_BYTES)
    fast_path = SerialFastPath(queue, PORT)
    got = bytearray()
    with ThreadPoolExecutor(1) as other:
        printing = other.submit(print_all, queue, fast_path)
        while not printing.done():
            fast_path.thr_credits = UNLIMITED if len(queue) < QUEUE_BYTES // 2 else 7
            fast_path.line_status = LSR_IDLE
            assert fast_path.thr_credits >= 0
            assert fast_path.line_status == LSR_IDLE
            got += queue.take()
            fast_path.line_status = None
        printing.result()
    got += queue.take()
    assert got == bytes(number & 0xFF for number in range(CHARACTERS))
    queue.close()


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (log_copies, log_discards, ring, ring_with_event_index, console)
}


def main(names: list[str]) -> None:
    for name in names or SCENARIOS:
        begin = time.monotonic()
        SCENARIOS[name]()
        print(f"{name}: {time.monotonic() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
