# SPDX-License-Identifier: Apache-2.0
"""The copiers of standard streams, on pipes that another program has made non-blocking."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
import time

import pytest

from pyvmm.lab.stdio import InputCopier, OutputCopier

LINES = b"".join(b"line %d\n" % number for number in range(30_000))


def wait_until_full(writer: int) -> None:
    """Wait until the pipe of `writer` takes no more."""
    poller = select.poll()
    poller.register(writer, select.POLLOUT)
    deadline = time.monotonic() + 10
    while poller.poll(0):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_all_output_reaches_a_slow_reader_of_a_nonblocking_pipe() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    copier = OutputCopier(writer)

    def send() -> None:
        with copier.end as end, contextlib.suppress(BrokenPipeError):
            end.sendall(LINES)

    threading.Thread(target=send, daemon=True).start()
    wait_until_full(writer)
    received = b""
    os.set_blocking(reader, False)
    deadline = time.monotonic() + 10
    while not copier.finished():
        assert time.monotonic() < deadline
        with contextlib.suppress(BlockingIOError):
            received += os.read(reader, 4096)
    with contextlib.suppress(BlockingIOError):
        while data := os.read(reader, 65536):
            received += data
    assert received == LINES
    os.close(reader)
    os.close(writer)


def test_input_continues_after_another_reader_took_it(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    read = os.read
    taken: list[bytes] = []

    def read_after_another(fd: int, length: int) -> bytes:
        if fd == reader and not taken:
            taken.append(read(fd, length))
        return read(fd, length)

    monkeypatch.setattr("pyvmm.lab.stdio.os.read", read_after_another)
    os.write(writer, b"taken")
    with InputCopier(reader).end as end:
        while not taken:
            time.sleep(0.001)
        os.write(writer, b"rest")
        os.close(writer)
        assert end.recv(100) == b"rest"
    os.close(reader)


def test_the_error_of_a_full_disk_is_kept() -> None:
    with open("/dev/full", "wb") as full:
        copier = OutputCopier(full.fileno())
        with copier.end as end:
            end.sendall(b"output")
        copier._thread.join(10)
    assert copier.error is not None
    assert copier.error.errno == errno.ENOSPC
