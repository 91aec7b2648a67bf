# SPDX-License-Identifier: Apache-2.0
"""Files of unix sockets: their mode, when they are taken over, and when they are removed."""

import fcntl
import os
import socket
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from pyvmm.cli.remedies import remedy
from pyvmm.errors import UserError
from pyvmm.sockets import unix
from pyvmm.sockets.unix import UnixListener, connect_unix


def assert_answered(listener: UnixListener, path: Path) -> None:
    with connect_unix(path, 10) as client, listener.socket.accept()[0] as stream:
        client.send(b"x")
        assert stream.recv(1) == b"x"


def refusal(path: Path) -> UserError:
    with pytest.raises(UserError) as error:
        UnixListener(path)
    return error.value


def test_only_the_owner_may_connect_and_the_file_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    listener = UnixListener(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert_answered(listener, path)
    listener.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_stale_socket_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    listener = UnixListener(path)
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
        assert "in use" in str(refusal(path))
        assert path.stat().st_ino == inode
        for client in waiting:
            client.close()


def test_a_path_with_another_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    assert "not a socket" in str(refusal(path))
    assert path.read_text() == "data"


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path / "absent" / "qmp")
    assert "no such file or directory" in str(error)
    assert "directory" in remedy(error)


def test_the_remedy_for_an_unreachable_socket_is_an_address(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        connect_unix(tmp_path / "a,b", 10)
    assert f"--qmp unix:{tmp_path}/a,,b," in remedy(error.value)


def test_a_file_replaced_by_another_server_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    listener = UnixListener(path)
    path.rename(tmp_path / "moved")
    successor = UnixListener(path)
    listener.remove()
    assert_answered(successor, path)
    successor.remove()
    assert not path.exists()


def test_errors_name_the_requested_address(tmp_path: Path) -> None:
    path = tmp_path / "in-the-lab"
    first = UnixListener(path, shown_as="unix:/asked/for")
    with pytest.raises(UserError) as error:
        UnixListener(path, shown_as="unix:/asked/for")
    assert "unix:/asked/for is in use" in str(error.value)
    assert "in-the-lab" not in str(error.value)
    first.remove()
    with pytest.raises(UserError) as error:
        UnixListener(tmp_path / "absent" / "inner", shown_as="unix:/asked/for")
    assert "cannot create the socket unix:/asked/for" in str(error.value)
    assert "inner" not in str(error.value)


def test_of_two_servers_that_start_at_once_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second starts when the first has bound its socket, and does not listen yet."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    refusals: list[UserError] = []
    second = threading.Thread(target=lambda: refusals.append(refusal(path)))
    chmod = os.chmod

    def start_second(*arguments: Any) -> None:
        chmod(*arguments)
        monkeypatch.undo()
        second.start()
        second.join(0.1)

    monkeypatch.setattr(os, "chmod", start_second)
    listener = UnixListener(path)
    second.join(10)
    assert "in use by another process" in str(refusals[0])
    listener.socket.accept()[0].close()  # the second has looked whether it listens
    assert_answered(listener, path)
    listener.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_server_does_not_wait_without_end_for_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix, "LOCK_TIMEOUT_S", 0.05)
    with (tmp_path / ".pyvmm-socket.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another process has locked its path" in str(refusal(tmp_path / "socket"))
    UnixListener(tmp_path / "socket").remove()
    assert list(tmp_path.iterdir()) == []


def test_a_socket_is_removed_while_it_still_listens(tmp_path: Path) -> None:
    """Else a server that starts in between would take the file for a stale one."""
    path = tmp_path / "socket"
    listener = UnixListener(path)
    listener.unlink()
    assert not path.exists()
    successor = UnixListener(path)
    listener.remove()
    assert_answered(successor, path)
    successor.remove()
