# SPDX-License-Identifier: Apache-2.0
"""Copy files and directories of a guest to the host: `--get`.

The agent sends a tar archive. Its contents are the guest's, and a hostile guest can send any, so
nothing is unpacked outside a new directory, which gets its final name when it is complete: names
with `..` and absolute ones are refused, files are created in directories that were created here,
and symbolic links last, so that none can be followed. Only permission bits are taken.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from pyvmm.boot.overlay import AGENT
from pyvmm.cli.command_request import GetPath
from pyvmm.cli.errors import CommandError
from pyvmm.guest_agent.client import GuestAgent
from pyvmm.guest_agent.streams import MemorySink

MAX_MEMBERS = 1_000_000
_COPY_BYTES = 1 << 20


class _FileSink:
    """Writes output to a file that is known to take it at once."""

    busy = False

    def __init__(self, file: tempfile._TemporaryFileWrapper[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def put(self, data: bytes) -> None:
        """Write `data`; a failure is kept in `error`."""
        try:
            self._file.write(data)
        except OSError as error:
            self.error = error


async def fetch(agent: GuestAgent, path: GetPath) -> None:
    """Copy `path`. Raises `CommandError` if the guest does not have it, or it cannot be written."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.host.parent, prefix=".pyvmm-get-") as archive:
            await _receive(agent, path, archive)
            archive.seek(0)
            _unpack(archive, path)
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error)) from error


async def _receive(
    agent: GuestAgent, path: GetPath, archive: tempfile._TemporaryFileWrapper[bytes]
) -> None:
    sink, messages = _FileSink(archive), MemorySink()
    command = agent.start([AGENT, "archive", path.guest], output=sink, error=messages)
    command.end_input()
    result = await command.wait()
    if sink.error is not None:
        raise sink.error
    if result.status:
        reason = messages.data.decode("utf-8", "replace").strip() or f"status {result.status}"
        raise CommandError(f"cannot get {path.guest}: {reason}", "check --get")
    archive.flush()


def _unpack(archive: tempfile._TemporaryFileWrapper[bytes], path: GetPath) -> None:
    with tempfile.TemporaryDirectory(dir=path.host.parent, prefix=".pyvmm-get-") as temporary:
        top = Path(temporary, "top")
        try:
            with tarfile.open(fileobj=archive, mode="r:") as tar:
                _extract(tar, top)
        except (tarfile.TarError, ValueError) as error:
            raise CommandError(
                f"the guest sent no valid archive of {path.guest}: {error}", "check the guest"
            ) from error
        if not os.path.lexists(top):
            raise CommandError(f"the guest sent nothing for {path.guest}", "check --get")
        if os.path.lexists(path.host):
            raise _unwritable(path, "it exists by now")
        top.rename(path.host)


def _extract(tar: tarfile.TarFile, top: Path) -> None:
    """Extract the archive of one file or directory, whose name becomes `top`."""
    links: list[tuple[Path, str]] = []
    modes: list[tuple[Path, int]] = []
    name: str | None = None
    for count, member in enumerate(tar):
        parts = PurePosixPath(member.name).parts
        if not parts or member.name.startswith("/") or ".." in parts or count > MAX_MEMBERS:
            raise ValueError(f"member {member.name!r} has no place in it")
        name = name or parts[0]
        if parts[0] != name:
            raise ValueError(f"member {member.name!r} is not below {name!r}")
        target = top.joinpath(*parts[1:])
        if member.isdir():
            target.mkdir(mode=0o700)
            modes.append((target, member.mode))
        elif member.issym():
            links.append((target, member.linkname))
        elif member.isreg():
            _write(tar, member, target)
        else:
            raise ValueError(f"member {member.name!r} is of an unexpected type")
    for target, linked in links:
        target.symlink_to(linked)
    for target, mode in reversed(modes):  # of directories, when nothing is added any more
        target.chmod(stat.S_IMODE(mode) & 0o777)


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    source = tar.extractfile(member)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(target, flags, 0o600), "wb") as file:
        if source is not None:
            shutil.copyfileobj(source, file, _COPY_BYTES)
        os.fchmod(file.fileno(), stat.S_IMODE(member.mode) & 0o777)


def _unwritable(path: GetPath, reason: str) -> CommandError:
    return CommandError(f"{path.host} cannot be written: {reason}", "name another path in --get")
