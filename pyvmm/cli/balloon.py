# SPDX-License-Identifier: Apache-2.0
"""`pyvmm balloon`: show or change how much RAM a running guest has.

The guest's driver does the work. It may take long, or stop short of the target when it finds no
more free memory. So the command polls the size that the driver reports, and ends when it is the
target or has not changed for `--timeout` seconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from pyvmm.cli.errors import CommandError
from pyvmm.cli.json_output import json_option, print_json
from pyvmm.cli.options import parse_size_value, qmp_option, timeout_option
from pyvmm.cli.qmp_command import EXIT_NOT_DONE, run_qmp_command
from pyvmm.progress.live_bar import live_bar
from pyvmm.qmp.client import ConnectionClosedError, QmpClient
from pyvmm.standard_streams.text import print_line, print_message
from pyvmm.units import format_size
from pyvmm_native import PAGE_BYTES

POLL_PERIOD_S = 0.2

OnProgress = Callable[[int], None]
"""Takes the RAM that the guest has now, in bytes."""


@click.command()
@click.argument("target_bytes", metavar="[TARGET]", required=False, type=parse_size_value)
@qmp_option
@timeout_option(10.0, "Stop waiting when the size has not changed for this many seconds.")
@click.option("--no-wait", is_flag=True, help="Set the target and do not wait for the guest.")
@json_option
def balloon(
    target_bytes: int | None, address: str, timeout_s: float, no_wait: bool, as_json: bool
) -> int:
    """Show or change how much RAM a running guest has.

    TARGET is the RAM to leave to the guest, as in QEMU, not the size of the balloon: a number of
    bytes, or a number with K, M, G or T (powers of 1024). Without TARGET, show the present state.

    \b
    Leave 256 MiB to a guest of 1 GiB, then give it everything back:
      pyvmm balloon 256M --qmp unix:/tmp/vm.sock
      pyvmm balloon 1G --qmp unix:/tmp/vm.sock

    \b
    Show how much it has now:
      pyvmm balloon --qmp unix:/tmp/vm.sock

    The exit status is 0 when the target was reached, 1 when the guest stopped short of it or ended,
    2 when the request was invalid.
    """
    if target_bytes == 0:
        raise CommandError("a guest cannot run with 0 bytes", "give the RAM to leave to the guest")

    def work(client: QmpClient) -> int:
        if target_bytes is None:
            _show(client, as_json)
            return 0
        return _change(client, target_bytes, None if no_wait else timeout_s, as_json)

    return run_qmp_command(address, "pyvmm balloon", work)


def _change(client: QmpClient, target_bytes: int, timeout_s: float | None, as_json: bool) -> int:
    """Set the target, wait for the guest unless `timeout_s` is None, and report the result."""
    ram_bytes = _ram_bytes(client)
    if target_bytes > ram_bytes:
        raise CommandError(
            f"the guest has only {format_size(ram_bytes)} of RAM",
            f"give a target of at most {ram_bytes} bytes",
        )
    started = time.monotonic()
    change = BalloonChange(client, ram_bytes, target_bytes)
    elapsed_s = None
    if timeout_s is not None:
        _watch(change, timeout_s)
        elapsed_s = round(time.monotonic() - started, 6)
    if as_json:
        result = {"target": target_bytes, "reached": change.reached, "seconds": elapsed_s}
        print_json({**_state(client), "actual": change.actual_bytes, **result})
    elif elapsed_s is None:
        print_line(f"set the target to {format_size(target_bytes)} of {format_size(ram_bytes)}")
    elif change.reached:
        print_line(f"the guest has {change.size} after {elapsed_s:.1f} s")
    if elapsed_s is None or change.reached:
        return 0
    print_message(
        f"the guest stopped at {change.size} ({format_size(change.missing_bytes)} short);"
        f" its balloon has not changed for {timeout_s:g} s"
    )
    return EXIT_NOT_DONE


@dataclass
class BalloonChange:
    """A change of the balloon's size in progress; the constructor sets the target."""

    client: QmpClient
    ram_bytes: int
    target_bytes: int

    def __post_init__(self) -> None:
        self.start_bytes = self.actual_bytes = _actual_bytes(self.client)
        self.client.execute("balloon", value=self.target_bytes)
        # The balloon holds whole pages, so the RAM left to the guest is rounded up.
        taken_pages = (self.ram_bytes - self.target_bytes) // PAGE_BYTES
        self.goal_bytes = self.ram_bytes - taken_pages * PAGE_BYTES

    @property
    def reached(self) -> bool:
        """True when the guest has exactly the RAM that the target leaves to it."""
        return self.actual_bytes == self.goal_bytes

    @property
    def size(self) -> str:
        """The guest's present RAM, of its RAM at boot."""
        return f"{format_size(self.actual_bytes)} of {format_size(self.ram_bytes)}"

    @property
    def missing_bytes(self) -> int:
        """Bytes between the guest's present RAM and its goal, in either direction."""
        return abs(self.actual_bytes - self.goal_bytes)

    def wait(self, timeout_s: float, on_progress: OnProgress) -> None:
        """Return when the goal is reached or nothing has changed for `timeout_s` seconds.

        Raises `ConnectionClosedError` when the guest ends.
        """
        changed = time.monotonic()
        while not self.reached:
            left_s = changed + timeout_s - time.monotonic()
            if left_s <= 0:
                return
            event = self.client.wait_for_event(min(POLL_PERIOD_S, left_s))
            if event is not None and event.get("event") == "SHUTDOWN":
                raise ConnectionClosedError
            actual_bytes = _actual_bytes(self.client)
            if actual_bytes != self.actual_bytes:
                self.actual_bytes = actual_bytes
                changed = time.monotonic()
                on_progress(actual_bytes)


def _watch(change: BalloonChange, timeout_s: float) -> None:
    """Wait for `change`, with a progress bar if standard error is a terminal."""
    if not sys.stderr.isatty():
        change.wait(timeout_s, lambda actual_bytes: None)
        return
    span_bytes = max(abs(change.goal_bytes - change.start_bytes), 1)
    verb = "inflating" if change.goal_bytes < change.start_bytes else "deflating"
    with live_bar(verb) as bar:

        def show(actual_bytes: int) -> None:
            done_bytes = abs(actual_bytes - change.start_bytes)
            text = f"{done_bytes / span_bytes:4.0%}  guest has {format_size(actual_bytes)}"
            bar.show(verb, done_bytes, span_bytes, text)

        show(change.start_bytes)
        change.wait(timeout_s, show)


def _show(client: QmpClient, as_json: bool) -> None:
    """Print the present state, as a table or as JSON."""
    state = _state(client)
    if as_json:
        print_json({**state, "target": None, "reached": None, "seconds": None})
        return
    # Late: saves 23 ms (rich) when a target is given, and with --json.
    from rich.table import Table

    from pyvmm.standard_streams.rich_console import TextConsole

    ram_bytes, actual_bytes = state["base-memory"], state["actual"]
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("status", state["status"])
    table.add_row("RAM at boot", format_size(ram_bytes))
    table.add_row("guest has", format_size(actual_bytes))
    table.add_row("in the balloon", format_size(ram_bytes - actual_bytes))
    TextConsole().print(table)


def _state(client: QmpClient) -> dict[str, Any]:
    return {
        "status": client.execute("query-status")["status"],
        "base-memory": _ram_bytes(client),
        "actual": _actual_bytes(client),
    }


def _ram_bytes(client: QmpClient) -> int:
    return int(client.execute("query-memory-size-summary")["base-memory"])


def _actual_bytes(client: QmpClient) -> int:
    return int(client.execute("query-balloon")["actual"])
