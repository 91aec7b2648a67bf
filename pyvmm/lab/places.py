# SPDX-License-Identifier: Apache-2.0
"""What code that runs in the lab has to know about being there.

The lab is transparent but for one thing: a socket that clients outside connect to is listened on
outside, at the path the person gave, and the command inside listens somewhere that only the agent
looks. `listening_path` translates; outside the lab it changes nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

IN_LAB_VARIABLE = "PYVMM_IN_LAB"
_SOCKETS_VARIABLE = "PYVMM_LAB_SOCKETS"
_INNER_DIRECTORY = "/dev/shm"


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
