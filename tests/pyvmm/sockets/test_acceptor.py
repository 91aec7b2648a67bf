# SPDX-License-Identifier: Apache-2.0
"""More clients than the limit, and than there are descriptors: one line, and others are served."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.qmp.client import QmpClient
from pyvmm.qmp.server import MAX_CLIENTS
from pyvmm.sockets.acceptor import Acceptor
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm, served_in_thread

SERVER = """
import asyncio, logging, sys
from pathlib import Path
from pyvmm.qmp.server import ControlServer
from tests.pyvmm.qmp.in_memory_vm import InMemoryVm

async def main():
    server = ControlServer(InMemoryVm(), Path(sys.argv[1]))
    await server.start()
    print("listening", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.close()

logging.basicConfig(format="%(message)s")
asyncio.run(main())
"""


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen(8)
        listening.setblocking(False)
        yield listening


def connect(listening: socket.socket) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(10)
    client.connect(listening.getsockname())
    return client


def test_clients_beyond_the_limit_are_disconnected_and_logged_once(
    listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    acceptor = Acceptor(listener, "client")
    assert acceptor.accept(0, 2) is None  # no client waits
    for _ in range(3):
        with connect(listener) as client:
            assert acceptor.accept(2, 2) is None
            assert client.recv(1) == b""
    refusal = "a client was disconnected: there are 2 already, which is the limit"
    assert caplog.messages == [refusal]
    with connect(listener):
        accepted = acceptor.accept(1, 2)
        assert accepted is not None
        accepted.close()
    with connect(listener):
        assert acceptor.accept(2, 2) is None
    assert caplog.messages == [refusal, refusal], "the first of a new row"
    acceptor.close()


def test_a_client_without_a_descriptor_is_disconnected(
    listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    acceptor = Acceptor(listener, "client")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    clients = [connect(listener) for _ in range(3)]
    lowest_free = os.dup(0)
    os.close(lowest_free)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        accepted = [acceptor.accept(0, 9) for _ in clients]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert accepted == [None] * 3
    for client in clients:
        assert client.recv(1) == b""
        client.close()
    reason = "no descriptors are left (Too many open files)"
    assert caplog.messages == [f"a client was disconnected: {reason}"]
    assert not select.select([listener], [], [], 0)[0]
    acceptor.close()


def test_the_control_socket_limits_its_clients(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    path = tmp_path / "qmp"
    with served_in_thread(InMemoryVm(), path), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(QmpClient(path, 10)) for _ in range(MAX_CLIENTS)]
        with socket.socket(socket.AF_UNIX) as another:
            another.settimeout(10)
            another.connect(str(path))
            assert another.recv(1) == b""
        assert clients[-1].execute("query-status")["status"] == "running"
    assert [message for message in caplog.messages if "the limit" in message] == caplog.messages[:1]


def test_a_server_without_descriptors_logs_one_line_and_serves_its_clients(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (30, 30)),
    )
    assert server.stdout is not None
    assert server.stdout.readline() == "listening\n"
    clients = [socket.socket(socket.AF_UNIX) for _ in range(60)]
    replies = []
    for client in clients:
        client.settimeout(10)
        client.connect(str(path))
        with contextlib.suppress(ConnectionResetError):
            replies.append(client.recv(4096))
    served = [client for client, reply in zip(clients, replies, strict=True) if reply]
    assert 5 < len(served) < 30
    assert all("QMP" in json.loads(reply) for reply in replies if reply)
    served[-1].sendall(b'{"execute": "qmp_capabilities"}')
    assert json.loads(served[-1].recv(4096)) == {"return": {}}
    for client in clients:
        client.close()
    _, errors = server.communicate(timeout=30)
    assert server.returncode == 0
    assert errors.count("\n") == 1, errors
    assert "control client was disconnected: no descriptors are left" in errors
