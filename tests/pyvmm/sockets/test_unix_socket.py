# SPDX-License-Identifier: Apache-2.0
"""The files of unix sockets: whose they are, when they are taken over, and what an address is."""

import socket
import stat
from pathlib import Path

import pytest

from pyvmm.errors import UserError
from pyvmm.sockets.unix import Listener, connect, parse_address


def assert_answered(listener: Listener, path: Path) -> None:
    with connect(path, 10) as client, listener.socket.accept()[0] as stream:
        client.send(b"x")
        assert stream.recv(1) == b"x"


def refusal(path: Path) -> UserError:
    with pytest.raises(UserError) as error:
        Listener(path)
    return error.value


def test_only_the_owner_may_connect_and_its_file_goes(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    listener = Listener(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert_answered(listener, path)
    listener.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_stale_socket_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    listener = Listener(path)
    assert_answered(listener, path)
    listener.remove()


@pytest.mark.parametrize("backlog_full", [False, True])
def test_a_path_in_use_is_refused_and_left_alone(tmp_path: Path, backlog_full: bool) -> None:
    path = tmp_path / "qmp"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(0)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(4 if backlog_full else 0)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(str(path))
        inode = path.stat().st_ino
        assert "in use" in refusal(path).message
        assert path.stat().st_ino == inode
        for client in waiting:
            client.close()


def test_a_file_in_the_way_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    assert "not a socket" in refusal(path).message
    assert path.read_text() == "data"


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path / "absent" / "qmp")
    assert "no such file or directory" in error.message
    assert "directory" in error.remedy


def test_a_socket_that_is_not_ours_any_more_stays(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    listener = Listener(path)
    path.rename(tmp_path / "moved")
    successor = Listener(path)
    listener.remove()
    assert_answered(successor, path)
    successor.remove()
    assert not path.exists()


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("unix:/tmp/vm.sock", "/tmp/vm.sock"),
        ("unix:vm.sock", "vm.sock"),
        ("unix:/tmp/vm,server=on,wait=off", "/tmp/vm"),
        ("unix:/tmp/vm,server,nowait", "/tmp/vm"),
        ("unix:/" + "x" * 106, "/" + "x" * 106),
    ],
)
def test_addresses(text: str, path: str) -> None:
    assert parse_address(text) == Path(path)


@pytest.mark.parametrize(
    "text",
    [
        *("", "/tmp/vm", "unix:", "unix", "tcp:localhost:1", "unix:a,wait=on", "unix:a\0b"),
        *("unix:/" + "x" * 107, "unix:/" + "é" * 54),
    ],
)
def test_bad_addresses(text: str) -> None:
    with pytest.raises(UserError):
        parse_address(text)
