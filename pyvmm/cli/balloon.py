# SPDX-License-Identifier: Apache-2.0
"""`pyvmm balloon`: show or change how much RAM a running guest has.

A change has an end: the guest reaches the target, or the command reports that it does not, and why.
Then, as on a signal or a lost connection, it takes its target back (`balloon_change`), unless
`--keep-target` is given. So a command that has ended without success leaves no guest behind from
which memory is still being taken. A target with which the guest could not live is refused before
anything is changed (`pyvmm.balloon.safe_target`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

from pyvmm.cli.balloon_change import Balloon, BalloonChange, End, GuestShutDown, query_balloon
from pyvmm.cli.collected_signals import collected_signals
from pyvmm.cli.errors import CommandError, RequestFailed
from pyvmm.cli.json_output import json_option, print_json
from pyvmm.cli.memory_backing import describe_kept
from pyvmm.cli.options import parse_size_value, qmp_option, timeout_option
from pyvmm.cli.qmp_command import EXIT_NOT_DONE, run_qmp_command
from pyvmm.progress.live_bar import live_bar
from pyvmm.qmp.client import ConnectionClosedError, QmpClient
from pyvmm.sockets.addresses import parse_unix_address
from pyvmm.standard_streams.text import print_line, print_message
from pyvmm.units import format_size

NO_DRIVER = "the guest runs no balloon driver"
PAUSED = "the guest is paused and cannot respond"
MIGRATED = "The guest has migrated and runs on the destination"
"""Reasons why a guest cannot follow a target."""
COMMAND = "pyvmm balloon"


@dataclass(frozen=True)
class ChangeOptions:
    """The options of a change."""

    timeout_s: float | None
    """Longest time without a change of size; None to set the target and not to wait."""
    force: bool
    keep_target: bool
    as_json: bool


@click.command()
@click.argument("target_bytes", metavar="[TARGET]", required=False, type=parse_size_value)
@qmp_option
@timeout_option(10.0, "Stop waiting when the size has not changed for this many seconds.")
@click.option("--no-wait", is_flag=True, help="Set the target and do not wait for the guest.")
@click.option(
    "--keep-target",
    is_flag=True,
    help="Leave the target in force when the guest stops short of it, or on a signal.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Set a target with which the guest cannot live by its own figures.",
)
@json_option
def balloon(
    target_bytes: int | None,
    address: str,
    timeout_s: float,
    no_wait: bool,
    keep_target: bool,
    force: bool,
    as_json: bool,
) -> int:
    """Show or change how much RAM a running guest has.

    TARGET is the RAM to leave to the guest, as in QEMU, not the size of the balloon: a number of
    bytes, or a number with K, M, G or T (powers of 1024). Without TARGET, show the present state.

    A guest that stops short of the target gets back what it has given: the target before is set
    again, as it is when a signal such as Ctrl-C ends the command. A target smaller than what the
    guest needs, by its own statistics, is refused.

    \b
    Leave 256 MiB to a guest of 1 GiB, then give it everything back:
      pyvmm balloon 256M --qmp unix:/tmp/vm.sock
      pyvmm balloon 1G --qmp unix:/tmp/vm.sock

    \b
    Take as much as the guest's driver finds, without regard for its programs:
      pyvmm balloon 64M --force --keep-target --qmp unix:/tmp/vm.sock

    \b
    Show how much it has now:
      pyvmm balloon --qmp unix:/tmp/vm.sock

    The exit status is 0 when the target was reached, 1 when the guest stopped short of it or ended,
    2 when the request was invalid or the guest runs no driver, 128 + N when signal N ended the
    wait.
    """
    if target_bytes == 0:
        raise CommandError("a guest cannot run with 0 bytes", "give the RAM to leave to the guest")
    options = ChangeOptions(None if no_wait else timeout_s, force, keep_target, as_json)

    def work(client: QmpClient) -> int:
        if target_bytes is None:
            _show(client, as_json)
            return 0
        change = BalloonChange(client, parse_unix_address(address), target_bytes)
        return _change(client, change, options)

    return run_qmp_command(address, COMMAND, work)


def _change(client: QmpClient, change: BalloonChange, options: ChangeOptions) -> int:
    """Set the target, wait for the guest unless that is disabled, and report the result."""
    if change.target_bytes > change.ram_bytes:
        raise CommandError(
            f"the guest has only {format_size(change.ram_bytes)} of RAM",
            f"give a target of at most {change.ram_bytes} bytes",
        )
    status = client.execute("query-status")["status"]
    if options.timeout_s is not None and not change.reached:
        _check_that_the_guest_follows(change, status)
    if not options.force:
        change.check(running=status == "running")
    if options.timeout_s is not None:
        return _change_and_wait(client, change, options.timeout_s, options)
    change.start()
    if options.as_json:
        print_json(_document(_state(client, change.before), change, None, None))
    else:
        sizes = f"{format_size(change.target_bytes)} of {format_size(change.ram_bytes)}"
        print_line(f"set the target to {sizes}")
    return 0


def _check_that_the_guest_follows(change: BalloonChange, status: str) -> None:
    """Raise `RequestFailed` if no driver would act on a target now."""
    if status == "paused":
        raise RequestFailed(PAUSED, COMMAND)
    if status == "postmigrate":
        raise RequestFailed(MIGRATED, COMMAND)
    if change.before.driver_runs is False:
        raise RequestFailed(NO_DRIVER, COMMAND)


def _change_and_wait(
    client: QmpClient, change: BalloonChange, timeout_s: float, options: ChangeOptions
) -> int:
    """Set the target and wait; take the target back unless the guest reaches it."""
    started = time.monotonic()
    with collected_signals() as signals:
        try:
            change.start()
            end = _watch(change, timeout_s, signals)
        except GuestShutDown:
            raise
        except Exception as error:
            if not options.keep_target:
                _take_back_after(error, change)
            raise
        elapsed_s = time.monotonic() - started
        if end is End.REACHED:
            if options.as_json:
                print_json(_document(_state(client, None), change, elapsed_s, False))
            else:
                clauses = [f"the guest has {change.size} after {elapsed_s:.1f} s"]
                clauses += filter(None, [describe_kept(query_balloon(client).kept_bytes or 0)])
                print_line("; ".join(clauses))
            return 0
        state = _state(client, None) if options.as_json else {}
        taken_back, clause = False, f"its target stays {format_size(change.target_bytes)}"
        if not options.keep_target:
            taken_back, clause = change.take_back()
    if options.as_json:
        print_json(_document(state, change, elapsed_s, taken_back))
    print_message(f"{_reason(end, change, timeout_s)}; {clause}")
    return 128 + signals[0] if end is End.SIGNAL else EXIT_NOT_DONE


def _take_back_after(error: Exception, change: BalloonChange) -> None:
    """Take the target back after `error`; raises `CommandError` if only the connection was lost."""
    taken_back, clause = change.take_back()
    if taken_back and isinstance(error, (ConnectionClosedError, TimeoutError)):
        raise CommandError(f"the connection to the guest was lost; {clause}", "try again")
    if taken_back:
        print_message(clause)


def _reason(end: End, change: BalloonChange, timeout_s: float) -> str:
    """Return the clause that says why the target was not reached."""
    if end is End.SIGNAL:
        return f"interrupted when the guest had {change.size}"
    if end is End.DRIVER_STOPPED:
        return "the guest's balloon driver has stopped"
    return (
        f"the guest stopped at {change.size} ({format_size(change.missing_bytes)} short);"
        f" its balloon has not changed for {timeout_s:g} s"
    )


def _watch(change: BalloonChange, timeout_s: float, signals: Sequence[int]) -> End:
    """Wait for `change`, with a progress bar if standard error is a terminal."""
    if not sys.stderr.isatty():
        return change.wait(timeout_s, signals, lambda actual_bytes: None)
    start_bytes = change.before.actual_bytes
    span_bytes = max(abs(change.goal_bytes - start_bytes), 1)
    verb = "inflating" if change.inflates else "deflating"
    with live_bar(verb) as bar:

        def show(actual_bytes: int) -> None:
            done_bytes = abs(actual_bytes - start_bytes)
            text = f"{done_bytes / span_bytes:4.0%}  guest has {format_size(actual_bytes)}"
            bar.show(verb, done_bytes, span_bytes, text)

        show(start_bytes)
        return change.wait(timeout_s, signals, show)


def _show(client: QmpClient, as_json: bool) -> None:
    """Print the present state, as a table or as JSON."""
    balloon = query_balloon(client)
    state = _state(client, balloon)
    if as_json:
        print_json(_document(state, None, None, None))
        return
    # Late: saves 23 ms (rich) when a target is given, and with --json.
    from rich.table import Table

    from pyvmm.standard_streams.rich_console import TextConsole

    ram_bytes, actual_bytes = state["base-memory"], state["actual"]
    rows = {
        "status": state["status"],
        "RAM at boot": format_size(ram_bytes),
        "guest has": format_size(actual_bytes),
        "in the balloon": format_size(ram_bytes - actual_bytes),
    }
    if balloon.target_bytes is not None:
        rows["target"] = format_size(balloon.target_bytes)
    if state["kept"]:
        rows["kept by the host"] = format_size(state["kept"])
    if balloon.driver_runs is not None:
        rows["balloon driver"] = "runs" if balloon.driver_runs else "does not run"
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows.items():
        table.add_row(name, value)
    TextConsole().print(table)


def _state(client: QmpClient, balloon: Balloon | None) -> dict[str, Any]:
    """Return the members of the document that describe the guest; queries `balloon` if None."""
    balloon = balloon or query_balloon(client)
    return {
        "status": client.execute("query-status")["status"],
        "base-memory": int(client.execute("query-memory-size-summary")["base-memory"]),
        "actual": balloon.actual_bytes,
        "driver": balloon.driver_runs,
        "kept": balloon.kept_bytes,
    }


def _document(
    state: dict[str, Any],
    change: BalloonChange | None,
    elapsed_s: float | None,
    taken_back: bool | None,
) -> dict[str, Any]:
    """Return the document of `--json`; `change` is None without TARGET."""
    return {
        **state,
        "target": None if change is None else change.target_bytes,
        "reached": None if change is None else change.reached,
        "seconds": None if elapsed_s is None else round(elapsed_s, 6),
        "taken-back": taken_back,
    }
