# SPDX-License-Identifier: Apache-2.0
"""`pyvmm balloon`: show or change how much RAM a running guest keeps.

The guest's driver does the work and may take its time, or stop short when it finds no more memory
to give. So the command watches the guest's own figure move: it ends when the target is reached, or
when nothing has moved for `--timeout` seconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import click

from pyvmm.cli.monitor import EXIT_NOT_DONE, qmp_option, visit
from pyvmm.errors import UserError
from pyvmm.qmp.client import ConnectionClosedError, QmpClient
from pyvmm.units import format_size, parse_size
from pyvmm_native import PAGE_BYTES

POLL_PERIOD_S = 0.2

OnProgress = Callable[[int], None]
"""Takes what the guest has now, in bytes."""


def parse_seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= 86400:  # written so that "nan" is refused as well
        raise ValueError("not between 0 and 86400")
    return seconds


@click.command()
@click.argument("target", required=False)
@qmp_option
@click.option(
    "--timeout",
    "timeout_s",
    type=parse_seconds,
    default=10.0,
    show_default=True,
    metavar="S",
    help="Give up when nothing has moved for this many seconds.",
)
@click.option("--no-wait", is_flag=True, help="Only set the target.")
def balloon(target: str | None, address: str, timeout_s: float, no_wait: bool) -> int:
    """Show or change how much RAM a running guest keeps.

    TARGET is the RAM the guest is to keep, as in QEMU, not the size of the balloon: a number of
    bytes, or one with K, M, G or T (powers of 1024). Without TARGET the present state is shown.

    \b
    Take all but 256 MiB from a guest, then give everything back to a guest of 1 GiB:
      pyvmm balloon 256M --qmp unix:/tmp/vm.sock
      pyvmm balloon 1G --qmp unix:/tmp/vm.sock

    \b
    What does it have now?
      pyvmm balloon --qmp unix:/tmp/vm.sock

    The exit status is 0 when the target was reached, 1 when the guest stopped short of it or ended,
    2 when the request made no sense.
    """
    target_bytes = None if target is None else _parse_target(target)

    def work(client: QmpClient) -> int:
        if target_bytes is None:
            _show(client)
            return 0
        return _change(client, target_bytes, timeout_s, no_wait)

    return visit(address, "pyvmm balloon", work)


def _parse_target(text: str) -> int:
    target_bytes = parse_size(text)
    if target_bytes == 0:
        raise UserError("a guest cannot keep 0 bytes", "give the RAM the guest is to keep")
    return target_bytes


def _change(client: QmpClient, target_bytes: int, timeout_s: float, no_wait: bool) -> int:
    ram_bytes = _ram_bytes(client)
    if target_bytes > ram_bytes:
        raise UserError(
            f"the guest has only {format_size(ram_bytes)} of RAM",
            f"give a target of at most {ram_bytes} bytes",
        )
    started = time.monotonic()
    change = Change(client, ram_bytes, target_bytes)
    if no_wait:
        print(f"asked the guest to keep {format_size(target_bytes)} of {format_size(ram_bytes)}")
        return 0
    _watch(change, timeout_s)
    elapsed_s = time.monotonic() - started
    got = f"{format_size(change.actual_bytes)} of {format_size(ram_bytes)}"
    if change.reached:
        print(f"the guest keeps {got} after {elapsed_s:.1f} s")
        return 0
    print(
        f"pyvmm: the guest stopped at {got} ({format_size(change.missing_bytes)} short) "
        f"and has not moved for {timeout_s:g} s",
        file=sys.stderr,
    )
    return EXIT_NOT_DONE


@dataclass
class Change:
    """A change under way. Making one sets the target."""

    client: QmpClient
    ram_bytes: int
    target_bytes: int

    def __post_init__(self) -> None:
        self.start_bytes = self.actual_bytes = _actual_bytes(self.client)
        self.client.execute("balloon", value=self.target_bytes)
        # The device counts whole pages taken, so what the guest keeps is rounded up.
        taken_pages = (self.ram_bytes - self.target_bytes) // PAGE_BYTES
        self.goal_bytes = self.ram_bytes - taken_pages * PAGE_BYTES

    @property
    def reached(self) -> bool:
        """Whether the guest has exactly what it was asked to keep."""
        return self.actual_bytes == self.goal_bytes

    @property
    def missing_bytes(self) -> int:
        """How far the guest is from its goal, either way."""
        return abs(self.actual_bytes - self.goal_bytes)

    def wait(self, timeout_s: float, on_progress: OnProgress) -> None:
        """Return when the goal is reached or nothing has moved for `timeout_s` seconds.

        Raises `ConnectionClosedError` when the machine ends.
        """
        moved = time.monotonic()
        while not self.reached:
            left_s = moved + timeout_s - time.monotonic()
            if left_s <= 0:
                return
            event = self.client.wait_for_event(min(POLL_PERIOD_S, left_s))
            if event is not None and event.get("event") == "SHUTDOWN":
                raise ConnectionClosedError
            actual_bytes = _actual_bytes(self.client)
            if actual_bytes != self.actual_bytes:
                self.actual_bytes = actual_bytes
                moved = time.monotonic()
                on_progress(actual_bytes)


def _watch(change: Change, timeout_s: float) -> None:
    """Wait for `change`, with a progress bar if somebody is there to see it."""
    if not sys.stderr.isatty():
        change.wait(timeout_s, lambda actual_bytes: None)
        return
    from rich.console import Console  # late: slow to import
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %  guest has {task.fields[actual]}"),
        TimeElapsedColumn(),
    )
    span_bytes = abs(change.goal_bytes - change.start_bytes)
    verb = "inflating" if change.goal_bytes < change.start_bytes else "deflating"
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(
            verb, total=max(span_bytes, 1), actual=format_size(change.start_bytes)
        )
        change.wait(
            timeout_s,
            lambda actual_bytes: progress.update(
                task,
                completed=abs(actual_bytes - change.start_bytes),
                actual=format_size(actual_bytes),
            ),
        )


def _show(client: QmpClient) -> None:
    """Print the present state as a table."""
    from rich.console import Console
    from rich.table import Table

    ram_bytes, actual_bytes = _ram_bytes(client), _actual_bytes(client)
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("status", client.execute("query-status")["status"])
    table.add_row("RAM at start", format_size(ram_bytes))
    table.add_row("guest has", format_size(actual_bytes))
    table.add_row("in the balloon", format_size(ram_bytes - actual_bytes))
    Console().print(table)


def _ram_bytes(client: QmpClient) -> int:
    return int(client.execute("query-memory-size-summary")["base-memory"])


def _actual_bytes(client: QmpClient) -> int:
    return int(client.execute("query-balloon")["actual"])
