# SPDX-License-Identifier: Apache-2.0
"""The chapters whose check has passed, remembered in `$XDG_STATE_HOME/pyvmm/learn.json`.

By default that is `~/.local/state/pyvmm/learn.json` (XDG Base Directory Specification). A file that
is missing or damaged means that none has passed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from pyvmm.files.replacement import replace_file


def state_file() -> Path:
    """Return the path of the file, which need not exist. RuntimeError without a home directory."""
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "pyvmm" / "learn.json"


def completed_chapters() -> set[int]:
    """Return the numbers of the chapters whose check has passed."""
    try:
        numbers = json.loads(state_file().read_bytes())["completed"]
        return {number for number in numbers if isinstance(number, int)}
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return set()


def remember_completed(number: int) -> None:
    """Remember that the check of chapter `number` has passed. Raises OSError."""
    path = state_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = sorted({*completed_chapters(), number})
    replace_file(path, json.dumps({"completed": numbers}).encode() + b"\n")
