# SPDX-License-Identifier: Apache-2.0
"""Announce a guest in the runtime directory, for as long as its process lives.

The announcement of a guest called NAME is the file NAME.json, and NAME.sock, its control socket.
The process holds an flock(2) on the former. The lock, unlike a process ID, ends with the process
however it ends, and says the same in every PID namespace; files without a lock are leftovers, which
`remove_leftover` removes and a new guest of that name replaces.

A file that has just been created is not locked yet, and one that is being removed is locked by the
process that removes it. So a process that gets the lock checks that the file still has its name.

NAME.json is written once, in one call, when the socket listens; until then it is empty. Its members
are those of `describe`. Both files are for this user only.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pyvmm.runtime_directory.directory import create_directory, failures_reported
from pyvmm.runtime_directory.errors import (
    GuestNameInUse,
    InvalidGuestName,
    RuntimeDirectoryUnusable,
)

if TYPE_CHECKING:
    from typing import Self

MAX_NAME_CHARACTERS = 48
_PUNCTUATION = "._-"
MAX_NUMBER = 9999
"""The largest number in the name of a guest that was given none."""
LOCK_TIMEOUT_S = 0.5
"""Longest wait for a process that removes the files of an earlier guest with the same name."""
_LOCK_POLL_S = 0.005
_BACKLOG = 16
_MODE = 0o1600
"""The sticky bit keeps a file from being cleaned up by age (XDG Base Directory Specification)."""


class ListeningSocket:
    """A unix socket that listens at `path`, in a directory that only this user may enter.

    Leaving the `with` block removes it. Raises OSError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.unlink(missing_ok=True)
            self.socket.bind(str(path))
            path.chmod(0o600)
            self.socket.listen(_BACKLOG)
        except BaseException:
            self.socket.close()
            raise

    def remove(self) -> None:
        """Remove the socket file and stop listening. May be called from any thread, repeatedly."""
        self.path.unlink(missing_ok=True)
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()


class Announcement(ListeningSocket):
    """The announced guest `name`, whose files `remove` removes.

    `lock` is a locked descriptor of its description. Raises OSError.
    """

    def __init__(self, directory: Path, name: str, lock: int) -> None:
        self.name = name
        self._lock = lock
        self._description = description_path(directory, name)
        super().__init__(socket_path(directory, name))

    def describe(self, image: str, ram_bytes: int, incoming: str | None) -> None:
        """Write the description, with which the guest can be found.

        `image` is the path of its kernel or snapshot, or empty if it comes from `incoming`, an
        address; it has at most `ram_bytes`. Removes the files and raises `RuntimeDirectoryUnusable`
        if it cannot be written.
        """
        members = {
            "name": self.name,
            "pid": os.getpid(),
            "pid-start-time": process_start_time("self"),
            "started": int(time.time()),
            "image": image,
            "base-memory": ram_bytes,
            "incoming": incoming,
        }
        try:
            with failures_reported(self.path.parent):
                os.pwrite(self._lock, f"{json.dumps(members)}\n".encode(), 0)
        except RuntimeDirectoryUnusable:
            self.remove()
            raise

    def remove(self) -> None:
        """Remove the files, unless they are gone. May be called from any thread, repeatedly."""
        lock, self._lock = self._lock, -1
        if lock < 0:
            return
        with suppress(OSError):
            if _has_name(lock, self._description):
                super().remove()
                self._description.unlink()
        self.socket.close()
        os.close(lock)


def description_path(directory: Path, name: str) -> Path:
    """Return the path of the file that describes the guest `name`."""
    return directory / f"{name}.json"


def socket_path(directory: Path, name: str) -> Path:
    """Return the path of the control socket of the guest `name`."""
    return directory / f"{name}.sock"


def is_name(name: str) -> bool:
    """Return whether a guest can be called `name`.

    It is a file name everywhere, needs no quotes in a shell, and is no option.
    """
    usual = 0 < len(name) <= MAX_NAME_CHARACTERS and all(map(_in_names, name))
    return usual and name[0] not in _PUNCTUATION


def check_name(name: str) -> None:
    """Raise `InvalidGuestName` unless a guest can be called `name`."""
    if not is_name(name):
        raise InvalidGuestName(
            f"a guest cannot be called {name!r}, only by 1 to {MAX_NAME_CHARACTERS} letters,"
            " digits, dots, hyphens and underscores, the first a letter or digit"
        )


def _in_names(char: str) -> bool:
    return char.isascii() and (char.isalnum() or char in _PUNCTUATION)


def announce(name: str) -> Announcement:
    """Announce a guest called `name`.

    Raises `InvalidGuestName`, `GuestNameInUse` or `RuntimeDirectoryUnusable`.
    """
    check_name(name)
    directory = create_directory()
    with failures_reported(directory):
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while (announcement := _try_announce(directory, name)) is None:
            if time.monotonic() > deadline:
                raise GuestNameInUse(f"a guest called {name} is running")
            time.sleep(_LOCK_POLL_S)
        return announcement


def announce_numbered(stem: str) -> Announcement:
    """Announce a guest called by `stem` and a number that no running guest has.

    Characters that a name cannot have are replaced. Raises `RuntimeDirectoryUnusable`.
    """
    usual = "".join(char if _in_names(char) else "-" for char in stem)
    stem = usual.strip(_PUNCTUATION)[: MAX_NAME_CHARACTERS - len(f"-{MAX_NUMBER}")] or "guest"
    directory = create_directory()
    with failures_reported(directory):
        for number in range(1, MAX_NUMBER + 1):
            if announcement := _try_announce(directory, f"{stem}-{number}"):
                return announcement
        raise RuntimeDirectoryUnusable(f"the runtime directory {directory} is full of guests")


def remove_leftover(directory: Path, name: str, fd: int) -> bool:
    """Remove the files of guest `name`, whose description is open as `fd`, if its process is gone.

    Returns whether it is. Raises OSError.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    if _has_name(fd, description_path(directory, name)):
        socket_path(directory, name).unlink(missing_ok=True)
        description_path(directory, name).unlink()
    return True


def process_start_time(pid: str) -> int:
    """Return the start of process `pid` in clock ticks since the boot of the host (proc(5)).

    A process with the same ID and another start is another one.
    """
    with open(f"/proc/{pid}/stat", "rb") as stat:
        return int(stat.read().rpartition(b")")[2].split()[19])


def _try_announce(directory: Path, name: str) -> Announcement | None:
    """Announce a guest called `name`; None if another process has locked its description."""
    path = description_path(directory, name)
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _has_name(lock, path):
            return _make_announcement(directory, name, lock)
    except BlockingIOError:
        pass
    except BaseException:
        os.close(lock)
        raise
    os.close(lock)
    return None


def _make_announcement(directory: Path, name: str, lock: int) -> Announcement:
    try:
        os.ftruncate(lock, 0)
        os.fchmod(lock, _MODE)
        return Announcement(directory, name, lock)
    except BaseException:
        description_path(directory, name).unlink(missing_ok=True)
        raise


def _has_name(fd: int, path: Path) -> bool:
    """Return whether the file open as `fd` is that at `path`."""
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False
