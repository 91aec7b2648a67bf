# SPDX-License-Identifier: Apache-2.0
"""Progress of work in stages: bars on a terminal, a few lines elsewhere.

The work is a series of stages; a stage with a known total can advance. The code that does the work
gets a `Progress`, and does not know where it is shown.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

from pyvmm.standard_streams.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


class Progress(Protocol):
    """The interface that slow work reports to."""

    def stage(self, text: str, total: int | None = None) -> None:
        """Begin the next stage, of `total` steps; None if their number is unknown."""

    def advance(self, steps: int = 1) -> None:
        """Report that `steps` more steps of the current stage are done."""


class Silent:
    """A `Progress` that shows nothing."""

    def stage(self, text: str, total: int | None = None) -> None:
        """Show nothing."""

    def advance(self, steps: int = 1) -> None:
        """Show nothing."""


class PlainLines:
    """A `Progress` of lines: one per stage, and one per quarter of a stage that takes long."""

    QUIET_SECONDS = 10.0

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._text = ""
        self._total: int | None = None
        self._done = 0
        self._shown_at = 0.0
        self._shown_quarter = 0

    def stage(self, text: str, total: int | None = None) -> None:
        self._text, self._total = text, total
        self._done = self._shown_quarter = 0
        self._show(text)

    def advance(self, steps: int = 1) -> None:
        self._done += steps
        if not self._total:
            return
        quarter = min(4 * self._done // self._total, 3)
        if quarter > self._shown_quarter and time.monotonic() > self._shown_at + self.QUIET_SECONDS:
            self._shown_quarter = quarter
            self._show(f"{self._text}: {100 * self._done // self._total} %")

    def _show(self, line: str) -> None:
        self._shown_at = time.monotonic()
        print(printable(line), file=self._stream, flush=True)


class Bars:
    """A `Progress` of one bar per stage; finished stages stay on the screen with their time."""

    def __init__(self, rich: RichProgress) -> None:
        self._rich = rich
        self._task: TaskID | None = None

    def stage(self, text: str, total: int | None = None) -> None:
        self.finish()
        self._task = self._rich.add_task(printable(text), total=total)

    def advance(self, steps: int = 1) -> None:
        if self._task is not None:
            self._rich.advance(self._task, steps)

    def finish(self) -> None:
        """Show the current stage as complete, at any total."""
        if self._task is None:
            return
        done = max(self._rich.tasks[self._task].completed, 1)
        self._rich.update(self._task, total=done, completed=done)
        self._rich.stop_task(self._task)


@contextmanager
def show_progress(stream: TextIO | None = None) -> Iterator[Progress]:
    """Show progress on `stream` (default: standard error) while the block runs."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield PlainLines(stream)
        return
    # Deferred: saves 40 ms (rich) without a terminal.
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    from pyvmm.standard_streams.rich_console import TextConsole

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
    with RichProgress(*columns, TimeElapsedColumn(), console=TextConsole(stream)) as rich:
        bars = Bars(rich)
        yield bars
        bars.finish()
