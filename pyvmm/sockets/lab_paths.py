# SPDX-License-Identifier: Apache-2.0
"""Paths in the lab: of sockets, and of files that the lab does not share with the host.

A command in the lab sees the host's files, but a unix socket that it creates there is not reachable
from the host, nor the other way round. So `pyvmm.lab.run` listens on the host, at the address the
person gave, and forwards connections to a path in the lab's /dev/shm, where the command listens
instead: `listening_path` maps a control socket, `incoming_socket` the address of an incoming
migration, and `guest_socket` the socket of a guest that is announced on the host. Sockets on the
host are reached through the agent's proxy, at `proxy_socket`. Outside the lab nothing is mapped and
there is no proxy. Environment variables carry the maps.

Files are the host's, except in `LAB_DIRECTORIES`, where the lab has file systems of its own. A
guest with a forwarded control socket gets its paths from the host, so `host_cannot_see` a file
that it reads or writes there.
"""

# No postponed annotations: a named tuple compiles each type from its text, at every start.

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

IN_LAB_VARIABLE = "PYVMM_IN_LAB"
_SOCKETS_VARIABLE = "PYVMM_LAB_SOCKETS"
_INCOMING_VARIABLE = "PYVMM_LAB_INCOMING"
_GUEST_VARIABLE = "PYVMM_LAB_GUEST"
LAB_DIRECTORIES = (Path("/dev"), Path("/proc"), Path("/sys"))
_INNER_DIRECTORY = "/dev/shm"
PROXY_SOCKET = f"{_INNER_DIRECTORY}/pyvmm-proxy.sock"
INCOMING_SOCKET = f"{_INNER_DIRECTORY}/pyvmm-incoming.sock"
GUEST_SOCKET = f"{_INNER_DIRECTORY}/pyvmm-guest.sock"
"""The socket in the lab of the guest that is announced on the host."""
LAB_RUNTIME_DIRECTORY = f"{_INNER_DIRECTORY}/pyvmm-runtime"
"""The runtime directory in the lab."""


class IncomingSocket(NamedTuple):
    """The socket in the lab at which a migration arrives."""

    path: Path
    """Its path in the lab."""
    address: str
    """The host's address that leads to it; its port is never 0."""


def in_lab() -> bool:
    """Return True if this process runs in the lab."""
    return os.environ.get(IN_LAB_VARIABLE) == "1"


def inner_sockets(paths: Sequence[Path]) -> dict[Path, str]:
    """Map each absolute path on the host to the path in the lab where the command listens."""
    return {path: f"{_INNER_DIRECTORY}/pyvmm-{index}.sock" for index, path in enumerate(paths)}


def sockets_variable(inner: Mapping[Path, str]) -> dict[str, str]:
    """Return the environment variable that passes the map of `inner_sockets` to the command."""
    return {_SOCKETS_VARIABLE: json.dumps({str(path): inside for path, inside in inner.items()})}


def listening_path(path: Path) -> Path:
    """Return the path to bind so that clients on the host find the socket at `path`."""
    if not in_lab():
        return path
    inner = json.loads(os.environ.get(_SOCKETS_VARIABLE, "{}"))
    return Path(inner.get(os.path.abspath(path), path))


def lab_directory(path: Path) -> Path | None:
    """Return the directory of the lab's own that `path` is in, links followed; None if shared."""
    real = Path(os.path.realpath(path))
    return next((own for own in LAB_DIRECTORIES if real.is_relative_to(own)), None)


def host_cannot_see(path: Path) -> bool:
    """Return True if clients on the host name files, but not the one here at `path`."""
    if not in_lab():
        return False
    forwarded = guest_socket() or json.loads(os.environ.get(_SOCKETS_VARIABLE, "{}"))
    return bool(forwarded) and lab_directory(path) is not None


def incoming_variable(requested: str, bound: str) -> dict[str, str]:
    """Return the environment variable that tells the command where its migration arrives.

    `requested` is the address as the user gave it, `bound` the one the host listens at.
    """
    return {_INCOMING_VARIABLE: json.dumps({requested: bound})}


def incoming_socket(requested: str) -> IncomingSocket | None:
    """Return where a migration to `requested` arrives in the lab; None if not forwarded."""
    if not in_lab():
        return None
    bound = json.loads(os.environ.get(_INCOMING_VARIABLE, "{}")).get(requested)
    return IncomingSocket(Path(INCOMING_SOCKET), bound) if bound else None


def guest_variable(announced: bool) -> dict[str, str]:
    """Return the environment variable that tells the command whether its guest is announced."""
    return {_GUEST_VARIABLE: GUEST_SOCKET if announced else ""}


def guest_socket() -> Path | None:
    """Return where to listen for clients of the guest that is announced on the host, if it is."""
    path = os.environ.get(_GUEST_VARIABLE) if in_lab() else None
    return Path(path) if path else None


def proxy_socket() -> Path | None:
    """Return the path of the agent's proxy to the host; None outside the lab."""
    return Path(PROXY_SOCKET) if in_lab() else None
