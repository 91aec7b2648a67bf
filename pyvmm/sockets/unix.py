# SPDX-License-Identifier: Apache-2.0
"""Unix sockets and their files: listen, connect, clean up.

A server takes over a socket file without a listener, and refuses one that is in use. It does so
under a lock, since between `bind` and `listen` a socket looks as if its listener had ended. When it
closes it removes only the file it created, so another server that has replaced that file keeps its
own. Only the file's owner may connect: the mode is set between `bind` and `listen`, and before
`listen` connections are refused, so the socket is never open to others.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from pyvmm.sockets.errors import (
    AddressUnavailable,
    ControlSocketUnreachable,
    SocketNotCreated,
    reason,
)

LOCK_TIMEOUT_S = 5.0
"""Longest wait for another process that binds the same path, which takes it milliseconds."""
_LOCK_POLL_S = 0.001
_BACKLOG = 16


class UnixListener:
    """A listening unix socket at `path`; `remove` deletes the file if it is still this one's.

    `shown_as` replaces the path in errors: in the lab, the host's address that is forwarded here.
    """

    def __init__(self, path: Path, *, shown_as: object = None) -> None:
        self._path = path
        self._shown_as = path if shown_as is None else shown_as
        self._removed = False
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _lock(path):
                self._bind()
                self.socket.listen(_BACKLOG)
                self._identity = _identity(path)
        except OSError as error:
            self.socket.close()
            raise SocketNotCreated(
                f"cannot create the socket {self._shown_as}: {reason(error)}"
            ) from error
        except BaseException:
            self.socket.close()
            raise

    def _bind(self) -> None:
        try:
            self.socket.bind(str(self._path))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            self._remove_stale()
            self.socket.bind(str(self._path))
        os.chmod(self._path, 0o600)

    def _remove_stale(self) -> None:
        """Remove a socket file without a listener, else raise `AddressUnavailable`."""
        if not stat.S_ISSOCK(self._path.lstat().st_mode):
            raise AddressUnavailable(f"{self._shown_as} exists and is not a socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)  # a listener whose backlog is full would block
            try:
                probe.connect(str(self._path))
            except ConnectionRefusedError:
                self._path.unlink(missing_ok=True)
                return
            except BlockingIOError:
                pass
        raise AddressUnavailable(f"the socket {self._shown_as} is in use by another process")

    def remove(self) -> None:
        """Stop listening, and remove the socket file unless another has replaced it."""
        self.unlink()
        self.socket.close()

    def unlink(self) -> None:
        """Remove the socket file, unless another has replaced it.

        The socket still listens, so no other server can take the path over in the meantime.
        """
        if self._removed:
            return  # a file there now belongs to another, even with the same device and inode
        self._removed = True
        with contextlib.suppress(FileNotFoundError):
            if _identity(self._path) == self._identity:
                self._path.unlink()


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the lock of all servers that would listen at `path`. Raises `OSError`.

    It is an flock(2) on a file in the same directory, which each holder removes.
    """
    name = path.parent / f".pyvmm-{path.name}.lock"
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while (lock := _try_lock(name)) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(errno.ETIMEDOUT, "another process has locked its path")
        time.sleep(_LOCK_POLL_S)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            name.unlink()
        os.close(lock)


def _try_lock(name: Path) -> int | None:
    """Return a descriptor that holds the lock of the file `name`, or None if another does."""
    lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), name.lstat()):  # else its last holder has removed it
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(lock)
        raise
    os.close(lock)
    return None


def connect_unix(path: Path, timeout_s: float) -> socket.socket:
    """Return a stream connected to the control socket at `path`.

    Its operations time out after `timeout_s`. Raises `ControlSocketUnreachable` if nothing listens
    there.
    """
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stream.settimeout(timeout_s)
    try:
        stream.connect(str(path))
    except OSError as error:
        stream.close()
        raise ControlSocketUnreachable(
            f"cannot connect to the control socket {path}: {reason(error)}", path
        ) from error
    return stream


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino
