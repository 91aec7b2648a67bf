# SPDX-License-Identifier: Apache-2.0
"""The socket's place in the file system: addresses, listening, connecting, cleaning up.

A server takes over a socket file nobody listens on any more, and refuses one that is in use. It
removes on exit only the very file it made, so a second server that took the path over in the
meantime keeps its own. Nobody but the file's owner may connect: the mode is set between `bind` and
`listen`, before which connections are refused, so there is no moment at which others could.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path

from pyvmm.errors import UserError

_PATH_LIMIT_BYTES = 107  # sizeof(sun_path) less the terminating zero, unix(7)
_QEMU_OPTIONS = {"server", "server=on", "wait=off", "nowait"}


def parse_address(text: str) -> Path:
    """The path in `unix:PATH`; QEMU's `,server=on,wait=off` is allowed behind it.

    Raises `UserError` for anything else, also for a path no unix socket can have.
    """
    scheme, _, rest = text.partition(":")
    path, *options = rest.split(",")
    if scheme != "unix" or not path or "\0" in path or not _QEMU_OPTIONS.issuperset(options):
        raise UserError(
            f"{text!r} is not a control socket address", "write unix:PATH, e.g. unix:/tmp/vm.sock"
        )
    if len(os.fsencode(path)) > _PATH_LIMIT_BYTES:
        raise UserError(
            f"the socket path {path} is longer than {_PATH_LIMIT_BYTES} bytes",
            "choose a shorter one, or a path relative to the working directory",
        )
    return Path(path)


class Listener:
    """A listening unix socket at `path`; `remove` takes the file away again if it is still ours."""

    def __init__(self, path: Path) -> None:
        self._path = path
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
                _remove_stale(self._path)
                self.socket.bind(str(self._path))
            os.chmod(self._path, 0o600)
        except OSError as error:
            raise UserError(
                f"cannot make the socket {self._path}: {_reason(error)}",
                "choose a path in an existing directory that you may write to",
            ) from error

    def remove(self) -> None:
        """Stop listening and remove the socket file, unless another has taken its place."""
        self.socket.close()
        if self._removed:
            return  # what is there now is another's, even if it looks the same
        self._removed = True
        with contextlib.suppress(FileNotFoundError):
            if _identity(self._path) == self._identity:
                self._path.unlink()


def connect(path: Path, timeout_s: float) -> socket.socket:
    """A stream connected to the control socket at `path`; `UserError` when nobody answers there."""
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stream.settimeout(timeout_s)
    try:
        stream.connect(str(path))
    except OSError as error:
        stream.close()
        raise UserError(
            f"cannot connect to the control socket {path}: {_reason(error)}",
            f"start a guest with --qmp unix:{path}, or give the path of a running one",
        ) from error
    return stream


def _remove_stale(path: Path) -> None:
    """Remove the socket file at `path` if nobody listens on it; `UserError` if that is not so."""
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise UserError(f"{path} exists and is not a socket", "choose another path, or remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog is an answer too
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass
    raise UserError(
        f"the socket {path} is in use by another process",
        "choose another path, or end that process",
    )


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
