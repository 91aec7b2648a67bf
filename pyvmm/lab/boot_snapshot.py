# SPDX-License-Identifier: Apache-2.0
"""Snapshot of the booted lab, so that later labs need not boot.

Under emulation the kernel's boot is nearly all of a lab's start, and it is the same every time. So
when the agent first reports `booted` (modules loaded, no file system of the host mounted), the
emulated machine is stopped for a moment and written to a file in the cache directory, in QEMU's
migration format, which stores zero pages in a few bytes. Later labs with the same memory,
processors, kernel, initramfs and QEMU resume from it. Every failure of a snapshot is harmless: the
lab boots its kernel instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import shlex
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pyvmm.cache.directory import CacheUnusable, cache_dir, keep_limit, keep_most_recent
from pyvmm.files.replacement import ReplacementFile
from pyvmm.lab.kernel import LAB_CACHE

_TIMEOUT_S = 60.0
_RECEIVE_BYTES = 1 << 16
_POLL_INTERVAL_S = 0.02
_UNLIMITED_BYTES_PER_SECOND = 1 << 40


class BootSnapshotError(Exception):
    """QEMU failed to save or resume."""


class QemuMonitor:
    """QMP on a connected socket, one command at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._ready = select.poll()
        self._ready.register(connection, select.POLLIN)
        self._received = b""
        self._negotiated = False
        self._watched: int | None = None
        self._interrupt: Callable[[], None] = lambda: None

    def watch(self, fd: int, interrupt: Callable[[], None]) -> None:
        """Call `interrupt`, which may raise, when `fd` is readable while a command is executed."""
        self._watched, self._interrupt = fd, interrupt
        self._ready.register(fd, select.POLLIN)

    def unwatch(self) -> None:
        """Undo `watch`."""
        if self._watched is not None:
            self._ready.unregister(self._watched)
            self._watched = None

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run one command and return its value. Raises BootSnapshotError if that fails."""
        if not self._negotiated:
            self._negotiated = True
            self.execute("qmp_capabilities")
        request = json.dumps({"execute": command, "arguments": arguments})
        ends_at = time.monotonic() + _TIMEOUT_S
        try:
            self._connection.settimeout(_TIMEOUT_S)
            self._connection.sendall(request.encode())
            while line := self._next_line(ends_at):
                message = json.loads(line)
                if "return" in message:
                    return message["return"]
                if "error" in message:
                    raise BootSnapshotError(f"{command}: {message['error']['desc']}")
        except (OSError, ValueError) as error:
            raise BootSnapshotError(f"{command}: {error}") from error
        raise BootSnapshotError(f"{command}: QEMU has ended")

    def _next_line(self, ends_at: float) -> bytes:
        """Return the next line; none at the end of the connection. Raises TimeoutError."""
        while b"\n" not in self._received:
            self._wait(ends_at)
            if not (data := self._connection.recv(_RECEIVE_BYTES)):
                return b""
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _wait(self, ends_at: float) -> None:
        """Wait until there is something to receive. Raises TimeoutError."""
        while True:
            left_ms = (ends_at - time.monotonic()) * 1000
            readable = {fd for fd, _ in self._ready.poll(max(left_ms, 0))}
            if self._watched in readable:
                self._interrupt()
            if self._connection.fileno() in readable:
                return
            if left_ms <= 0:
                raise TimeoutError("timed out")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def snapshot_path(machine: Sequence[str]) -> Path | None:
    """Return the path of the snapshot of a machine with these QEMU arguments.

    Returns None if there is no snapshot and no place in which to write one.

    `machine[0]` is QEMU's path. Another QEMU, kernel, initramfs or host processor has another
    path.
    """
    stat = os.stat(machine[0])
    model = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    parts = (*machine, str(stat.st_size), str(stat.st_mtime_ns), *model[:1])
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    try:
        path = cache_dir(LAB_CACHE) / f"snapshot-{digest[:16]}"
    except CacheUnusable:
        return None
    return path if path.exists() or os.access(path.parent, os.W_OK) else None


def save(monitor: QemuMonitor, path: Path) -> None:
    """Write the running machine to `path` and resume it. Raises BootSnapshotError."""
    monitor.execute("stop")
    try:
        _write(monitor, path)
    except BootSnapshotError:
        monitor.execute("cont")
        raise
    monitor.execute("cont")


def _write(monitor: QemuMonitor, path: Path) -> None:
    """Write the stopped machine to `path`. Raises BootSnapshotError."""
    try:
        parameters = {"max-bandwidth": _UNLIMITED_BYTES_PER_SECOND}
        monitor.execute("migrate-set-parameters", **parameters)
        with ReplacementFile(path) as file:
            monitor.execute("migrate", uri=f"exec:cat > {shlex.quote(str(file.path))}")
            _wait(monitor, "query-migrate", {"setup", "active", "device", "none"}, "completed")
            file.commit()
        keep_most_recent("snapshot-*", path)
        keep_limit(path)
    except OSError as error:
        raise BootSnapshotError(f"cannot write {path}: {error.strerror}") from error


def resume_arguments(path: Path) -> list[str]:
    """Return the further QEMU arguments of a machine that resumes from `path`."""
    return ["-incoming", f"exec:cat {shlex.quote(str(path))}"]


def resume(monitor: QemuMonitor, path: Path) -> None:
    """Wait until QEMU has read the snapshot, and run the machine. Raises BootSnapshotError."""
    _wait(monitor, "query-status", {"inmigrate"}, "paused")
    monitor.execute("cont")
    keep_most_recent("snapshot-*", path)


def _wait(monitor: QemuMonitor, query: str, before: set[str], after: str) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while (status := monitor.execute(query).get("status", "none")) in before:
        if time.monotonic() > deadline:
            raise BootSnapshotError(f"{query}: still {status}")
        time.sleep(_POLL_INTERVAL_S)
    if status != after:
        raise BootSnapshotError(f"{query}: {status}")
