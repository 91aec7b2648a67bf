# SPDX-License-Identifier: Apache-2.0
"""Unix sockets and their files: listen, connect, clean up.

A server takes over a socket file without a listener, and refuses one that is in use. When it
closes it removes only the file it created, so another server that has replaced that file keeps its
own. Only the file's owner may connect: the mode is set between `bind` and `listen`, and before
`listen` connections are refused, so the socket is never open to others.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path

from pyvmm.sockets.errors import (
    AddressUnavailable,
    ControlSocketUnreachable,
    SocketNotCreated,
    reason,
)


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
            self._bind()
            self.socket.listen(16)
        except BaseException:
            self.socket.close()
            raise
        self._identity = _identity(path)

    def _bind(self) -> None:
        try:
            try:
                self.socket.bind(str(self._path))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                self._remove_stale()
                self.socket.bind(str(self._path))
            os.chmod(self._path, 0o600)
        except OSError as error:
            raise SocketNotCreated(
                f"cannot create the socket {self._shown_as}: {reason(error)}"
            ) from error

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
        self.socket.close()
        if self._removed:
            return  # a file there now belongs to another, even with the same device and inode
        self._removed = True
        with contextlib.suppress(FileNotFoundError):
            if _identity(self._path) == self._identity:
                self._path.unlink()


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
