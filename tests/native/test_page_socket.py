# SPDX-License-Identifier: Apache-2.0
"""Blocks of pages between RAM and a socket: any pages, any cuts; damage, ends and deadlines."""

from __future__ import annotations

import fcntl
import math
import mmap
import socket
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.migration.messages import Pages, RoundEnd
from pyvmm_native.checksum import CHECKSUMS, Checksum
from pyvmm_native.memory import GuestMemory
from pyvmm_native.page_blocks import BLOCK_PAGES
from pyvmm_native.page_socket import HEAD_BYTES, PageSocket
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


def head_of(pages: set[int], first_pfn: int = 0) -> bytes:
    return Pages(first_pfn, bits_of(pages, first_pfn)).record().encode()


WHOLE = head_of(set(range(BLOCK_PAGES)))


@contextmanager
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        yield one, other


@contextmanager
def tcp_sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        yield one, other


def send_all(sender: PageSocket, heads: bytes) -> tuple[int, int]:
    """Send all blocks; return their number, and that of their bytes."""
    sent = size = 0
    while sent * HEAD_BYTES < len(heads):
        count, count_bytes = sender.send_blocks(heads[sent * HEAD_BYTES :], math.inf)
        sent, size = sent + count, size + count_bytes
    return sent, size


def page_socket(stream: socket.socket, memory: GuestMemory, name: str = "crc32c") -> PageSocket:
    return PageSocket(stream.fileno(), memory, Checksum(name))


def while_sending(
    stream: socket.socket, memory: GuestMemory, pages: set[int], name: str = "crc32c"
) -> threading.Thread:
    """Start a thread that sends block 0 of `memory`."""
    sender = page_socket(stream, memory, name)
    thread = threading.Thread(
        target=sender.send_blocks, args=(head_of(pages), math.inf), daemon=True
    )
    thread.start()
    return thread


def send_blocks(sender: PageSocket, deadline: float) -> None:
    """Send four whole blocks, which take more room than a socket has."""
    for _ in range(4):
        sender.send_blocks(WHOLE, deadline)


def receive_head(stream: socket.socket) -> bytes:
    stream.setblocking(True)
    head = stream.recv(HEAD_BYTES, socket.MSG_WAITALL)
    stream.setblocking(False)
    return head


@given(st.sets(st.integers(0, BLOCK_PAGES - 1), min_size=1), st.sampled_from(CHECKSUMS))
def test_a_block_arrives_in_the_same_pages_and_nowhere_else(pages: set[int], name: str) -> None:
    memory, copy = new_memory(), new_memory()
    for page in range(BLOCK_PAGES):
        memory.write(page * PAGE, page.to_bytes(2, "little") * (PAGE // 2 - 1) + b"ab")
    with sockets() as (one, other):
        thread = while_sending(one, memory, pages, name)
        assert receive_head(other) == head_of(pages)
        received = page_socket(other, copy, name).receive_blocks(head_of(pages), math.inf, math.inf)
        thread.join(10)
    assert received == (True, len(pages), b"")
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
        receiver = page_socket(fourth, copy, name)
        assert receiver.receive_blocks(head_of(pages), math.inf, math.inf) == (
            False,
            len(pages),
            b"",
        )
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
        assert page_socket(fourth, copy).receive_blocks(head_of(pages), math.inf, math.inf)[0]
        relaying.join(10)
        thread.join(10)
    assert nonzero(copy, ALL) == nonzero(memory, ALL)


@pytest.mark.parametrize("following", [b"", b"next", RoundEnd(1).record().encode(), WHOLE[:100]])
def test_bytes_after_a_block_are_returned_or_left(following: bytes) -> None:
    memory, copy = new_memory(), new_memory()
    with sockets() as (one, other):
        while_sending(one, memory, {3}).join(10)
        one.send(following)
        receive_head(other)
        received = page_socket(other, copy).receive_blocks(head_of({3}), math.inf, math.inf)
        assert received == (True, 1, following)
        for stream in (one, other):
            with pytest.raises(BlockingIOError):
                stream.recv(1)


@pytest.mark.parametrize("family", ["unix", "tcp"])
def test_one_call_sends_and_one_receives_several_blocks(family: str) -> None:
    memory, copy = new_memory(), new_memory()
    blocks = [(0, {0, 5, 511}), (1024, set(range(512))), (512, {0, GAP - 513}), (0, {5, 6})]
    for first_pfn, pages in blocks:
        for page in pages:
            memory.write((first_pfn + page) * PAGE, (first_pfn + page).to_bytes(2, "big") + b"x")
    heads = [head_of(pages, first_pfn) for first_pfn, pages in blocks]
    with sockets() if family == "unix" else tcp_sockets() as (one, other):
        sent: list[tuple[int, int]] = []
        thread = threading.Thread(
            target=lambda: sent.append(send_all(page_socket(one, memory), b"".join(heads)))
        )
        thread.start()
        head, received, receiver = receive_head(other), 0, page_socket(other, copy)
        while head:
            right, count, ahead = receiver.receive_blocks(head, math.inf, math.inf)
            assert right
            received += count
            other.setblocking(True)
            missing = HEAD_BYTES - len(ahead) if received < 519 else 0
            head = ahead + other.recv(missing, socket.MSG_WAITALL) if missing else ahead
            other.setblocking(False)
        thread.join(10)
    total = sum(len(named) for _, named in blocks)
    assert received == total == 519
    assert sent == [(4, 4 * (HEAD_BYTES + 8) + total * PAGE)]
    assert nonzero(copy, ALL) == nonzero(memory, ALL)


@pytest.mark.parametrize("family", ["unix", "tcp"])
@pytest.mark.parametrize(("block_s", "arrives"), [(5.0, True), (0.1, False)])
def test_a_later_block_has_time_of_its_own(family: str, block_s: float, arrives: bool) -> None:
    """Most of the first one's may have passed before it came."""
    with sockets() if family == "unix" else tcp_sockets() as (one, other):
        receiver = page_socket(other, new_memory())
        block = bytes(PAGE) + Checksum("crc32c").of(bytes(PAGE)).to_bytes(8, "little")
        one.sendall(block + head_of({1}))
        late = threading.Timer(0.4, lambda: one.sendall(block))
        late.start()
        try:
            received = receiver.receive_blocks(head_of({0}), time.monotonic() + 0.2, block_s)
        except TimeoutError:
            assert not arrives
        else:
            assert received[0]
            assert arrives or received[1] == 1  # the call has ended, on a busy host
        late.join()


def test_a_peer_that_has_sent_something_is_noticed_after_a_block() -> None:
    with sockets() as (one, other):
        other.send(b"abort")
        size = HEAD_BYTES + PAGE + 8
        assert page_socket(one, new_memory()).send_blocks(head_of({1}) * 3, math.inf) == (1, size)
        assert len(other.recv(3 * size)) == size


@pytest.mark.parametrize("at", range(0, HEAD_BYTES, 3))
def test_a_changed_head_is_left_to_the_caller(at: int) -> None:
    memory, copy = new_memory(), new_memory()
    changed = bytearray(head_of({3}))
    changed[at] ^= 0x40
    with sockets() as (one, other):
        while_sending(one, memory, {3}).join(10)
        one.send(changed)
        receive_head(other)
        received = page_socket(other, copy).receive_blocks(head_of({3}), math.inf, math.inf)
        assert received == (True, 1, bytes(changed))


@pytest.mark.parametrize(
    "head", [head_of({0}, 2048), head_of({GAP - 512}, 512), head_of(set()), head_of({1}, 1)]
)
def test_a_head_of_no_pages_or_of_pages_outside_ram_is_left_to_the_caller(head: bytes) -> None:
    with sockets() as (one, other):
        while_sending(one, new_memory(), {3}).join(10)
        one.send(head)
        receive_head(other)
        received = page_socket(other, new_memory()).receive_blocks(head_of({3}), math.inf, math.inf)
        assert received == (True, 1, head)


def test_received_pages_are_logged_as_dirty() -> None:
    memory, copy = new_memory(), new_memory()
    copy.log_dirty_pages(True)
    with sockets() as (one, other):
        while_sending(one, memory, {3, 4, 9}).join(10)
        receive_head(other)
        page_socket(other, copy).receive_blocks(head_of({3, 4, 9}), math.inf, math.inf)
    found = [PageRuns.from_bitmap(bits, first) for first, bits in copy.take_dirty_pages()]
    assert found[0] == PageRuns([(3, 2), (9, 1)])


@pytest.mark.parametrize("sent", [0, 5000])
def test_a_peer_that_closes_or_falls_silent_is_noticed(sent: int) -> None:
    with sockets() as (one, other):
        receiver = page_socket(other, new_memory())
        one.send(bytes(sent))
        begin = time.monotonic()
        with pytest.raises(TimeoutError):
            receiver.receive_blocks(head_of({0, 1}), begin + 0.1, math.inf)
        assert 0.1 <= time.monotonic() - begin < 5
        one.close()
        with pytest.raises(EOFError):
            receiver.receive_blocks(head_of({0, 1}), math.inf, math.inf)


def test_a_peer_that_reads_nothing_or_closes_is_noticed() -> None:
    with sockets() as (one, other):
        sender = page_socket(one, new_memory())
        begin = time.monotonic()
        with pytest.raises(TimeoutError):
            sender.send_blocks(WHOLE, begin + 0.1)
        assert 0.1 <= time.monotonic() - begin < 5
        other.close()
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            sender.send_blocks(WHOLE, math.inf)


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


def test_the_kernel_chooses_the_buffer_of_a_tcp_socket() -> None:
    """A low-water mark above its half would set it, and on a long path it would not grow."""
    with tcp_sockets() as (_, other):
        before = other.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        receiver = page_socket(other, new_memory())
        with pytest.raises(TimeoutError):
            receiver.receive_blocks(WHOLE, time.monotonic() + 0.1, math.inf)
        assert other.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == before
        assert other.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1


def test_less_than_the_low_water_mark_is_taken_from_tcp_soon() -> None:
    """A sender whose window has become small may wait until it is."""
    with tcp_sockets() as (one, other):
        receiver = page_socket(other, new_memory())
        one.send(bytes(1000))

        def left() -> int:
            count = bytearray(4)
            fcntl.ioctl(other, termios.FIONREAD, count)
            return int.from_bytes(count, "little")

        receiving = threading.Thread(target=receive_until_closed, args=(receiver,), daemon=True)
        receiving.start()
        ends_at = time.monotonic() + 5
        while left() and time.monotonic() < ends_at:
            time.sleep(0.01)
        assert left() == 0
        one.close()
        receiving.join(10)
        assert not receiving.is_alive()


def receive_until_closed(receiver: PageSocket) -> None:
    with pytest.raises(EOFError):
        receiver.receive_blocks(WHOLE, math.inf, math.inf)


def test_another_thread_can_shut_the_socket_down() -> None:
    with sockets() as (one, other):
        receiver = page_socket(other, new_memory())
        threading.Timer(0.1, other.shutdown, (socket.SHUT_RDWR,)).start()
        with pytest.raises(EOFError):
            receiver.receive_blocks(head_of({0}), math.inf, math.inf)
        assert one.recv(1) == b""


@pytest.mark.parametrize(
    "head",
    [
        head_of({2}, 1),
        Pages(512, b"\xff" * 64).record().encode(),
        Pages(1 << 41, b"\1" + bytes(63)).record().encode(),
        head_of({1})[:-1],
        b"",
    ],
)
@pytest.mark.parametrize("method", ["send_blocks", "receive_blocks"])
def test_pages_outside_ram_are_refused_and_nothing_is_sent(method: str, head: bytes) -> None:
    with sockets() as (one, other):
        limits = (math.inf, math.inf) if method == "receive_blocks" else (math.inf,)
        with pytest.raises(ValueError, match="block"):
            getattr(page_socket(one, new_memory()), method)(head, *limits)
        with pytest.raises(BlockingIOError):
            other.recv(1)


def test_an_unknown_checksum_is_refused() -> None:
    with pytest.raises(ValueError, match="no checksum 'md5' here"):
        Checksum("md5")
    assert {"crc32c", "none", "xxh3"} == set(CHECKSUMS)
    assert Checksum("none").of(b"123456789") == 0
    assert Checksum("crc32c").of(b"123456789") == 0xE3069283
    assert Checksum("xxh3").of(b"") == 0x2D06800538D394C2, "that of the xxHash specification"
