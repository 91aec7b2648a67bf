# SPDX-License-Identifier: Apache-2.0
"""The options of `pyvmm run` that record the guest's events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from pyvmm.cli.errors import CommandError
from pyvmm.cli.options import parse_size_value
from pyvmm.units import format_size

_Command = TypeVar("_Command", bound=Callable[..., Any])

RECORD_PARAMETERS = ("record", "record_limit", "record_exits")
"""Names of the parameters that `record_options` adds."""

_OPTIONS = (
    click.option(
        "--record",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Record the guest's events in FILE, for 'pyvmm recording'.",
    ),
    click.option(
        "--record-limit",
        type=parse_size_value,
        metavar="SIZE",
        show_default="no limit",
        help="Keep only the newest SIZE of the recording, at least 4M.",
    ),
    click.option(
        "--record-exits",
        type=click.IntRange(min=1),
        metavar="N",
        show_default="counts only",
        help="Record each Nth exit of a vCPU.",
    ),
)


class RecordOptions:
    """The recording that a person asks for.

    It goes to `path`, of which the newest `limit_bytes` are kept (0: all); each `sample_every`th
    exit of a vCPU is an event (0: none).
    """

    # No NamedTuple: making one takes 0.3 ms of every start.
    def __init__(self, path: Path, limit_bytes: int, sample_every: int) -> None:
        self.path = path
        self.limit_bytes = limit_bytes
        self.sample_every = sample_every


def record_options(command: _Command) -> _Command:
    """Give a command the options whose values `recording_of` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def recording_of(parameters: Mapping[str, Any]) -> RecordOptions | None:
    """Return the recording that `parameters` ask for, or None.

    Raises `CommandError`, and `RecordingNotWritten` for a file that is not a recording.
    """
    path, limit, exits = (parameters[name] for name in RECORD_PARAMETERS)
    if path is None:
        if limit is not None or exits is not None:
            option = "--record-exits" if limit is None else "--record-limit"
            raise CommandError(f"{option} applies only to a recording", "add --record FILE")
        return None
    if limit is not None:
        _check_limit(limit)
    # Late: saves 2 ms without --record.
    from pyvmm.trace.recording_file import check_recording

    check_recording(path)
    return RecordOptions(path, limit or 0, exits or 0)


def _check_limit(limit_bytes: int) -> None:
    # Late: saves 2 ms (the recorder) without a limit.
    from pyvmm.trace.recording_format import MIN_LIMIT_BYTES

    if limit_bytes < MIN_LIMIT_BYTES:
        raise CommandError(
            f"--record-limit {format_size(limit_bytes)} is too small",
            f"give at least {format_size(MIN_LIMIT_BYTES)}, or leave it out for no limit",
        )
