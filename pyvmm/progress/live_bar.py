# SPDX-License-Identifier: Apache-2.0
"""One bar on a terminal for work whose state is polled; it is erased when the work ends."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pyvmm.standard_streams.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress


class LiveBar:
    """The bar on the screen; `show` replaces what it shows."""

    def __init__(self, progress: RichProgress, description: str) -> None:
        self._progress = progress
        self._task = progress.add_task(printable(description), total=None, text="")

    @property
    def units_per_second(self) -> float:
        """The recent growth of the completed units; 0 before the second `show`."""
        return self._progress.tasks[0].speed or 0.0

    def show(self, description: str, completed: int, total: int | None, text: str) -> None:
        """Show `completed` of `total` units, or of an unknown number, and `text` beside the bar."""
        self._progress.update(
            self._task,
            description=printable(description),
            completed=completed,
            total=total,
            text=printable(text),
        )


@contextmanager
def live_bar(description: str) -> Iterator[LiveBar]:
    """Show a bar on standard error, which must be a terminal, while the block runs."""
    # Deferred: saves 40 ms (rich) wherever no bar is shown.
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from pyvmm.standard_streams.rich_console import TextConsole

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=TextConsole(sys.stderr), transient=True) as progress:
        yield LiveBar(progress, description)
