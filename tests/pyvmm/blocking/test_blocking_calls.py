# SPDX-License-Identifier: Apache-2.0
"""Blocking calls are not waited for beyond their deadline, nor by the end of the process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pyvmm.blocking.deadline import call_within
from pyvmm.blocking.in_thread import Worker, call_in_thread
from pyvmm.errors import UserError
from pyvmm.files import regular
from pyvmm.sockets import lookup
from pyvmm.sockets.addresses import TcpAddress
from pyvmm.sockets.connect import connect_directly
from pyvmm.sockets.listener import MigrationListener
from pyvmm.sockets.tls import Security

HANGING = """
import asyncio, sys, threading
from pyvmm.blocking.deadline import call_within
from pyvmm.blocking.in_thread import call_in_thread

hang = threading.Event().wait

async def wait_for_call():
    call_in_thread("hanging", hang)
    await asyncio.sleep(0.1)

if sys.argv[1] == "coroutine":
    asyncio.run(wait_for_call())
else:
    try:
        print("waiting", flush=True)
        call_within(60.0 if sys.argv[1] == "interrupted" else 0.1, "hanging", hang)
    except (TimeoutError, KeyboardInterrupt) as error:
        print(type(error).__name__)
"""


def test_a_call_returns_its_result_or_raises_its_exception() -> None:
    assert call_within(10, "call", lambda: 7) == 7
    assert call_within(10, "call", lambda: None) is None
    with pytest.raises(ValueError, match="invalid"):
        call_within(10, "call", lambda: int("seven"))


def test_a_late_result_is_discarded() -> None:
    released, discarded = threading.Event(), list[int]()

    def work() -> int:
        released.wait(20)
        return 7

    with pytest.raises(TimeoutError):
        call_within(0.01, "call", work, discarded.append)
    assert discarded == []
    released.set()
    while not discarded:
        time.sleep(0.01)
    assert discarded == [7]


@pytest.mark.parametrize("where", ["coroutine", "timed out", "interrupted"])
def test_a_process_ends_while_a_call_hangs(where: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING, where], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    if where == "interrupted":
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    expected = {"coroutine": "", "timed out": "TimeoutError", "interrupted": "KeyboardInterrupt"}
    assert output.split()[-1:] == expected[where].split()


def test_calls_of_a_worker_are_made_in_order_and_dropped_results_discarded() -> None:
    async def main() -> None:
        worker, made, discarded = Worker("worker"), list[int](), list[int]()
        released = threading.Event()

        def call(number: int) -> int:
            released.wait(20)
            made.append(number)
            return number

        first = worker.call(lambda: call(1), discarded.append)
        second = worker.call(lambda: call(2), discarded.append)
        worker.end()
        await asyncio.sleep(0)
        first.cancel()
        released.set()
        assert await second == 2
        assert (made, discarded) == ([1, 2], [1])

    asyncio.run(main())


def test_an_exception_of_a_call_is_raised_in_the_coroutine() -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="invalid"):
            await call_in_thread("call", lambda: int("seven"))

    asyncio.run(main())


def hang(*arguments: Any, **options: Any) -> Any:
    threading.Event().wait(30)


def test_opening_a_file_of_a_dead_file_system_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(regular, "OPEN_TIMEOUT_S", 0.1)
    monkeypatch.setattr(os, "stat", hang)
    with pytest.raises(OSError, match=r"its file system has not responded for 0\.1 s"):
        regular.open_regular(tmp_path / "file")


def test_a_name_server_that_does_not_answer_fails_every_look_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lookup, "LOOKUP_TIMEOUT_S", 0.1)
    monkeypatch.setattr(socket, "getaddrinfo", hang)
    address = TcpAddress("example.org", 1)
    unanswered = r"the name servers have not answered within 0\.1 s"
    with pytest.raises(UserError, match=unanswered):
        Security().check(address)
    with pytest.raises(UserError, match=unanswered):
        MigrationListener(address, Security(insecure=True))
    with pytest.raises(OSError, match=unanswered):
        connect_directly(address)
