# SPDX-License-Identifier: Apache-2.0
"""Find the running guests of this user in the runtime directory.

A guest is running while the lock on its description is held. The descriptions of others are
leftovers of processes that were killed, and are removed with their sockets. What a description says
is checked like any file of others: an invalid one announces nothing.
"""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from pyvmm.runtime_directory.announcement import (
    check_name,
    description_path,
    is_name,
    remove_leftover,
    socket_path,
)
from pyvmm.runtime_directory.directory import (
    check_directory,
    failures_reported,
    runtime_directory,
)
from pyvmm.runtime_directory.errors import NoSuchGuest

MAX_DESCRIPTION_BYTES = 1 << 16


class AnnouncedGuest(NamedTuple):
    """A running guest as its announcement describes it."""

    name: str
    socket: Path
    """Its control socket."""
    pid: int
    """The process that runs it, or in front of a lab the one that runs the lab."""
    pid_start_time: int
    """The start of that process, in clock ticks since the boot of the host."""
    started: int
    """Time of that start, in seconds since the epoch."""
    image: str
    """Path of the kernel or snapshot; empty for a guest that has migrated here."""
    ram_bytes: int
    """RAM, at most, if it comes from a migration."""
    incoming: str | None
    """The address at which it comes from a migration."""


def running_guests() -> list[AnnouncedGuest]:
    """Return the running guests by name. Raises `RuntimeDirectoryUnusable`."""
    directory = runtime_directory()
    if not check_directory(directory):
        return []
    guests = []
    with failures_reported(directory), suppress(FileNotFoundError):  # it is removed meanwhile
        for entry in os.scandir(directory):
            name, _, suffix = entry.name.rpartition(".")
            if suffix == "json" and is_name(name):
                guests.append(_read(directory, name))
    return sorted(guest for guest in guests if guest is not None)


def find_guest(name: str) -> AnnouncedGuest:
    """Return the running guest called `name`.

    Raises `InvalidGuestName`, `NoSuchGuest` or `RuntimeDirectoryUnusable`.
    """
    check_name(name)
    directory = runtime_directory()
    guest = _read(directory, name) if check_directory(directory) else None
    if guest is None:
        running = [guest.name for guest in running_guests()]
        raise NoSuchGuest(f"no running guest is called {name}", running)
    return guest


def _read(directory: Path, name: str) -> AnnouncedGuest | None:
    """Return the guest `name`, or None if it does not run; a leftover of it is removed."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(description_path(directory, name), flags)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode) or remove_leftover(directory, name, fd):
            return None
        return _parse(directory, name, os.pread(fd, MAX_DESCRIPTION_BYTES, 0))
    except OSError:
        return None
    finally:
        os.close(fd)


def _parse(directory: Path, name: str, text: bytes) -> AnnouncedGuest | None:
    """Return the guest that `text` describes; None if it is not valid, or not complete yet."""
    try:
        members: dict[str, Any] = json.loads(text)
        guest = AnnouncedGuest(
            name,
            socket_path(directory, name),
            members["pid"],
            members["pid-start-time"],
            members["started"],
            members["image"],
            members["base-memory"],
            members["incoming"],
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    numbers = (guest.pid, guest.pid_start_time, guest.started, guest.ram_bytes)
    valid = all(type(number) is int and 0 <= number < 1 << 63 for number in numbers)
    valid = valid and isinstance(guest.image, str)
    return guest if valid and isinstance(guest.incoming, str | None) else None
