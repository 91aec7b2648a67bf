# SPDX-License-Identifier: Apache-2.0
"""The end of a run with a COMMAND, for people, for the exit status and for `--status-file`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pyvmm.cli.errors import CommandError
from pyvmm.files.errors import OutputNotWritten
from pyvmm.files.output import JSON_START, check_output, write_output


class CommandEnd(NamedTuple):
    """The way in which a run has ended: `reason` is a word for scripts, `status` the exit status.

    `message` is the line for people; empty if the exit status says everything.
    """

    reason: str
    status: int
    message: str = ""
    signal: int | None = None
    oom_kills: int = 0


def check_status_file(path: Path) -> None:
    """Raise `CommandError` unless the status can be written to `path`."""
    with _errors():
        check_output(path, JSON_START)


def write_status(path: Path, end: CommandEnd) -> None:
    """Write `end` to `path`, as docs/reference/json.md describes it. Raises `CommandError`."""
    document = {
        "reason": end.reason,
        "status": end.status,
        "signal": end.signal,
        "oom-kills": end.oom_kills,
        "message": end.message or None,
    }
    with _errors():
        write_output(path, f"{json.dumps(document)}\n".encode(), JSON_START)


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except OutputNotWritten as error:
        raise CommandError(str(error), "choose another --status-file") from error
