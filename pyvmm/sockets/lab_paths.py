# SPDX-License-Identifier: Apache-2.0
"""What code that runs in the lab has to know about being there.

The lab is transparent but for its sockets. One that clients outside connect to is listened on
outside, at the address the person gave, and the command inside listens somewhere that only the
agent looks: `listening_path` translates for control sockets, `incoming_socket` for the one at which
a migration arrives. What is outside is reached through the agent, which listens at `proxy_socket`.
Outside the lab nothing is translated and there is no door.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

IN_LAB_VARIABLE = "PYVMM_IN_LAB"
_SOCKETS_VARIABLE = "PYVMM_LAB_SOCKETS"
_INCOMING_VARIABLE = "PYVMM_LAB_INCOMING"
_INNER_DIRECTORY = "/dev/shm"
PROXY_SOCKET = f"{_INNER_DIRECTORY}/pyvmm-outward.sock"
INCOMING_SOCKET = f"{_INNER_DIRECTORY}/pyvmm-incoming.sock"


class IncomingSocket(NamedTuple):
    """Where a migration arrives."""

    path: Path
    """Where to listen, in the lab."""
    address: str
    """Where that is reached from outside; the port that was 0 when it was asked for is known."""


def in_lab() -> bool:
    """This process runs inside the lab."""
    return os.environ.get(IN_LAB_VARIABLE) == "1"


def inner_sockets(paths: Sequence[Path]) -> dict[Path, str]:
    """For every absolute path outside, where the command inside is to listen."""
    return {path: f"{_INNER_DIRECTORY}/pyvmm-{index}.sock" for index, path in enumerate(paths)}


def sockets_variable(inner: Mapping[Path, str]) -> dict[str, str]:
    """The environment variable that tells the command about `inner`."""
    return {_SOCKETS_VARIABLE: json.dumps({str(path): place for path, place in inner.items()})}


def listening_path(path: Path) -> Path:
    """Where to listen so that clients find the socket at `path`."""
    if not in_lab():
        return path
    inner = json.loads(os.environ.get(_SOCKETS_VARIABLE, "{}"))
    return Path(inner.get(os.path.abspath(path), path))


def incoming_variable(asked: str, address: str) -> dict[str, str]:
    """The environment variable that tells the command where it is listened on for a migration.

    `asked` is the address as the person gave it, `address` the one that came of it.
    """
    return {_INCOMING_VARIABLE: json.dumps({asked: address})}


def incoming_socket(asked: str) -> IncomingSocket | None:
    """Where to wait for a migration to the address `asked`; None if just there."""
    if not in_lab():
        return None
    address = json.loads(os.environ.get(_INCOMING_VARIABLE, "{}")).get(asked)
    return IncomingSocket(Path(INCOMING_SOCKET), address) if address else None


def proxy_socket() -> Path | None:
    """The agent's socket for whoever wants to reach something outside the lab."""
    return Path(PROXY_SOCKET) if in_lab() else None
