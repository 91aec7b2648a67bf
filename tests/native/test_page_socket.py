# SPDX-License-Identifier: Apache-2.0
"""Blocks of pages between RAM and a socket: any pages, any cuts; damage, ends and deadlines."""

from __future__ import annotations

import math
import mmap
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm_native.checksum import CHECKSUMS, Checksum
from pyvmm_native.memory import GuestMemory
from pyvmm_native.page_blocks import BLOCK_PAGES
from pyvmm_native.page_socket import PageSocket
from pyvmm_native.pages import bitmap, nonzero
from pyvmm_native.runs import PageRuns

PAGE = 4096
GAP = 700
"""RAM ends here, between two blocks, and continues at frame 1024."""
ALL = PageRuns([(0, GAP), (1024, 512)])


def new_memory() -> GuestMemory:
    regions = [(0, GAP * PAGE), (1024 * PAGE, 512 * PAGE)]
    return GuestMemory([(gpa, mmap.mmap(-1, size)) for gpa, size in regions])


def bits_of(pages: set[int], first_pfn: int = 0) -> bytes:
    return bitmap(PageRuns((first_pfn + page, 1) for page in pages), first_pfn, BLOCK_PAGES)


@contextmanager
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        yield one, other


def page_socket(stream: socket.socket, memory: GuestMemory, name: str = "crc32c") -> PageSocket:
    return PageSocket(stream.fileno(), memory, Checksum(name))


def while_sending(
    stream: socket.socket, memory: GuestMemory, pages: set[int], name: str = "crc32c"
) -> threading.Thread:
    """Start a thread that sends "head" and block 0 of `memory`."""
    sender = page_socket(stream, memory, name)
    thread = threading.Thread(
        target=sender.send_block, args=(b"head", 0, bits_of(pages), math.inf), daemon=True
    )
    thread.start()
    return thread


def send_blocks(sender: PageSocket, deadline: float) -> None:
    """Send four whole blocks, which take more room than a socket has."""
    for _ in range(4):
        sender.send_block(b"head", 0, b"\xff" * 64, deadline)


def receive_head(stream: socket.socket) -> bytes:
    stream.setblocking(True)
    head = stream.recv(4, socket.MSG_WAITALL)
    stream.setblocking(False)
    return head


@given(st.sets(st.integers(0, BLOCK_PAGES - 1), min_size=1), st.sampled_from(CHECKSUMS))
def test_a_block_arrives_in_the_same_pages_and_nowhere_else(pages: set[int], name: str) -> None:
    memory, copy = new_memory(), new_memory()
    for page in range(BLOCK_PAGES):
        memory.write(page * PAGE, page.to_bytes(2, "little") * (PAGE // 2 - 1) + b"ab")
    with sockets() as (one, other):
        thread = while_sending(one, memory, pages, name)
        assert receive_head(other) == b"head"
        assert page_socket(other, copy, name).receive_block(0, bits_of(pages), math.inf)
        thread.join(10)
    assert nonzero(copy, ALL) == PageRuns((page, 1) for page in pages)
    for page in pages:
        assert copy.read(page * PAGE, PAGE) == memory.read(page * PAGE, PAGE)


@given(
    st.sets(st.integers(0, BLOCK_PAGES - 1), min_size=1, max_size=8),
    st.integers(0),
    st.integers(0, 7),
    st.sampled_from([name for name in CHECKSUMS if name != "none"]),
)
def test_a_changed_bit_is_noticed(pages: set[int], where: int, bit: int, name: str) -> None:
    memory, copy = new_memory(), new_memory()
    with sockets() as (one, other), sockets() as (third, fourth):
        thread = while_sending(one, memory, pages, name)
        receive_head(other)
        other.setblocking(True)
        data = bytearray(other.recv(len(pages) * PAGE + 8, socket.MSG_WAITALL))
        thread.join(10)
        data[where % len(data)] ^= 1 << bit
        third.setblocking(True)
        thread = threading.Thread(target=third.sendall, args=(data,))
        thread.start()
        assert not page_socket(fourth, copy, name).receive_block(0, bits_of(pages), math.inf)
        thread.join(10)


@pytest.mark.parametrize("step", [1, 7, 4096, 100_000])
def test_a_block_may_arrive_in_pieces_of_any_size(step: int) -> None:
    memory, copy = new_memory(), new_memory()
    pages = {0, 1, 2, 100, 511} if step < PAGE else set(range(0, BLOCK_PAGES, 2))
    for page in pages:
        memory.write(page * PAGE, b"contents")
    with sockets() as (one, other), sockets() as (third, fourth):
        thread = while_sending(one, memory, pages)
        receive_head(other)
        other.setblocking(True)
        third.setblocking(True)

        def relay() -> None:
            left = len(pages) * PAGE + 8
            while left:
                data = other.recv(min(step, left))
                third.sendall(data)
                left -= len(data)

        relaying = threading.Thread(target=relay, daemon=True)
        relaying.start()
        assert page_socket(fourth, copy).receive_block(0, bits_of(pages), math.inf)
        relaying.join(10)
        thread.join(10)
    assert nonzero(copy, ALL) == nonzero(memory, ALL)


def test_bytes_after_a_block_are_left_on_the_socket() -> None:
    memory, copy = new_memory(), new_memory()
    with sockets() as (one, other):
        while_sending(one, memory, {3}).join(10)
        one.send(b"next")
        receive_head(other)
        assert page_socket(other, copy).receive_block(0, bits_of({3}), math.inf)
        assert other.recv(100) == b"next"
        for stream in (one, other):
            with pytest.raises(BlockingIOError):
                stream.recv(1)


def test_received_pages_are_logged_as_dirty() -> None:
    memory, copy = new_memory(), new_memory()
    copy.log_dirty_pages(True)
    with sockets() as (one, other):
        while_sending(one, memory, {3, 4, 9}).join(10)
        receive_head(other)
        page_socket(other, copy).receive_block(0, bits_of({3, 4, 9}), math.inf)
    found = [PageRuns.from_bitmap(bits, first) for first, bits in copy.take_dirty_pages()]
    assert found[0] == PageRuns([(3, 2), (9, 1)])


@pytest.mark.parametrize("sent", [0, 5000])
def test_a_peer_that_closes_or_falls_silent_is_noticed(sent: int) -> None:
    with sockets() as (one, other):
        receiver = page_socket(other, new_memory())
        one.send(bytes(sent))
        begin = time.monotonic()
        with pytest.raises(TimeoutError):
            receiver.receive_block(0, bits_of({0, 1}), begin + 0.1)
        assert 0.1 <= time.monotonic() - begin < 5
        one.close()
        with pytest.raises(EOFError):
            receiver.receive_block(0, bits_of({0, 1}), math.inf)


def test_a_peer_that_reads_nothing_or_closes_is_noticed() -> None:
    with sockets() as (one, other):
        sender = page_socket(one, new_memory())
        begin = time.monotonic()
        with pytest.raises(TimeoutError):
            sender.send_block(b"head", 0, b"\xff" * 64, begin + 0.1)
        assert 0.1 <= time.monotonic() - begin < 5
        other.close()
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            sender.send_block(b"head", 0, b"\xff" * 64, math.inf)


def test_a_peer_that_takes_some_bytes_before_each_wait_ends_does_not_prolong_it() -> None:
    with sockets() as (one, other):
        sender, begin = page_socket(one, new_memory()), time.monotonic()

        def take_now_and_then() -> None:
            other.setblocking(True)
            for at in (0.02, 0.04, 0.06, 0.95, 1.9):
                time.sleep(max(0, begin + at - time.monotonic()))
                other.recv(140_000, socket.MSG_WAITALL)  # a unix socket has room from there on

        taking = threading.Thread(target=take_now_and_then)
        taking.start()
        with pytest.raises(TimeoutError):
            send_blocks(sender, begin + 1)
        assert 1 <= time.monotonic() - begin < 1.5
        one.close()
        taking.join(10)


def test_another_thread_can_shut_the_socket_down() -> None:
    with sockets() as (one, other):
        receiver = page_socket(other, new_memory())
        threading.Timer(0.1, other.shutdown, (socket.SHUT_RDWR,)).start()
        with pytest.raises(EOFError):
            receiver.receive_block(0, bits_of({0}), math.inf)
        assert one.recv(1) == b""


@pytest.mark.parametrize(
    "pages", [(1, b"\1" + bytes(63)), (512, b"\xff" * 64), (1 << 41, b"\1"), (0, b"\1" * 63)]
)
@pytest.mark.parametrize("method", ["send", "receive"])
def test_pages_outside_ram_are_refused_and_nothing_is_sent(
    method: str, pages: tuple[int, bytes]
) -> None:
    with sockets() as (one, other):
        both = page_socket(one, new_memory())
        call: dict[str, Callable[[], object]] = {
            "send": lambda: both.send_block(b"head", *pages, math.inf),
            "receive": lambda: both.receive_block(*pages, math.inf),
        }
        with pytest.raises(ValueError, match="block"):
            call[method]()
        with pytest.raises(BlockingIOError):
            other.recv(1)


def test_an_unknown_checksum_is_refused() -> None:
    with pytest.raises(ValueError, match="no checksum 'md5' here"):
        Checksum("md5")
    assert {"crc32c", "none", "xxh3"} == set(CHECKSUMS)
    assert Checksum("none").of(b"123456789") == 0
    assert Checksum("crc32c").of(b"123456789") == 0xE3069283
    assert Checksum("xxh3").of(b"") == 0x2D06800538D394C2, "that of the xxHash specification"
