# SPDX-License-Identifier: Apache-2.0
"""`pyvmm migrate`: move a running guest to another pyvmm, which waits for it with `--incoming`.

The guest's own process sends it; the command begins that over QMP, shows how far it is, and tells
how it went. A signal does not end the command but cancels the migration, unless that comes too
late: the outcome is waited for, so that what is said at the end is always where the guest is.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyvmm.cli.migration_options import security, security_options
from pyvmm.cli.monitor import EXIT_NOT_DONE, qmp_option, unused_option, visit
from pyvmm.qmp.client import ConnectionClosedError, QmpClient
from pyvmm.units import format_size, parse_size
from pyvmm_native import PAGE_BYTES

if TYPE_CHECKING:
    from pyvmm.sockets.tls import Security

POLL_PERIOD_S = 0.1
MONITOR_TIMEOUT_S = 30.0
"""The source's monitor may be busy while it hands over the guest."""
QUIET_SECONDS = 10.0
_ENDED = ("completed", "failed", "cancelled")
_CANCELLING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Show = Callable[[dict[str, Any]], None]
"""Takes the answer of query-migrate."""


@click.command()
@click.argument("destination", metavar="ADDRESS")
@qmp_option
@click.option(
    "--downtime-limit",
    "downtime_ms",
    type=click.IntRange(0, 2_000_000),
    default=300,
    show_default=True,
    metavar="MS",
    help="How long the guest may stand still in the end.",
)
@click.option(
    "--max-bandwidth",
    default="0",
    show_default=True,
    metavar="SIZE",
    help="Send no more than so much a second while the guest runs; 0 is no limit.",
)
@unused_option
@click.option(
    "--auto-converge",
    is_flag=True,
    help="Slow the guest down while it writes faster than its memory can be sent.",
)
@security_options
@click.option("--keep", is_flag=True, help="Do not end the process here when its guest has moved.")
def migrate(
    destination: str,
    address: str,
    downtime_ms: int,
    max_bandwidth: str,
    ask_unused: bool,
    auto_converge: bool,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    insecure: bool,
    keep: bool,
) -> int:
    """Move a running guest to the pyvmm that waits for it at ADDRESS.

    ADDRESS is tcp:HOST:PORT or unix:PATH. The guest runs on while its memory is copied, and stands
    still for a moment at the end. At any time exactly one side runs it. When it has moved, its
    process here ends. Ctrl-C gives up, and the guest goes on here.

    \b
    On this host, from one terminal to another:
      pyvmm run --incoming unix:/tmp/m --qmp unix:/tmp/there.sock
      pyvmm migrate unix:/tmp/m --qmp unix:/tmp/vm.sock

    \b
    To another host, each side with a certificate that the other's CA has signed:
      pyvmm run --incoming tcp:0.0.0.0:4444 --tls-ca ca.pem --tls-cert b.pem --tls-key b.key
      pyvmm migrate tcp:b:4444 --qmp unix:/tmp/vm.sock \\
          --tls-ca ca.pem --tls-cert a.pem --tls-key a.key

    The exit status is 0 when the guest has moved, 1 when it has not, and 2 when the request made
    no sense.
    """
    protection = security(tls_ca, tls_cert, tls_key, insecure)
    request = {"uri": _checked(destination, protection), "unused": ask_unused, "insecure": insecure}
    if (tls := protection.tls) is not None:
        files = {"tls-ca": tls.ca, "tls-cert": tls.certificate, "tls-key": tls.key}
        request |= {name: str(path) for name, path in files.items()}
    limits = {"downtime-limit": downtime_ms, "max-bandwidth": parse_size(max_bandwidth)}
    capability = {"capability": "auto-converge", "state": auto_converge}

    def work(client: QmpClient) -> int:
        client.execute("migrate-set-parameters", **limits)
        client.execute("migrate-set-capabilities", capabilities=[capability])
        return _move(client, request, keep)

    return visit(address, "pyvmm migrate", work, guest_timeout_s=MONITOR_TIMEOUT_S)


def _checked(destination: str, protection: Security) -> str:
    """The address as the guest's process has to have it, whose directory is another."""
    from pyvmm.sockets.addresses import UnixAddress, parse_migration_address

    address = parse_migration_address(destination)
    if isinstance(address, UnixAddress):
        address = parse_migration_address(f"unix:{address.path.absolute()}")
    protection.check(address)
    return str(address)


def _move(client: QmpClient, request: dict[str, Any], keep: bool) -> int:
    before = client.execute("query-status")["status"]
    with _noted_signals() as signals:
        client.execute("migrate", **request)
        try:
            with _view(request["uri"]) as show:
                answer = _wait(client, signals, show)
            now = client.execute("query-status")["status"]
        except ConnectionClosedError:
            _say(
                "the guest's process has ended before it said how the migration went;"
                " see whether the guest runs at the destination"
            )
            return EXIT_NOT_DONE
    if answer["status"] != "completed":
        _say(failure(answer, before, now))
        return EXIT_NOT_DONE
    print(summary(answer))
    if not keep:
        with suppress(ConnectionClosedError):
            client.execute("quit")
    return 0


def _wait(client: QmpClient, signals: list[int], show: Show) -> dict[str, Any]:
    """Show progress until there is an outcome, which is the answer of query-migrate."""
    cancelled = False
    while (answer := client.execute("query-migrate"))["status"] not in _ENDED:
        if signals and not cancelled:
            client.execute("migrate_cancel")
            cancelled = True
        show(answer)
        time.sleep(POLL_PERIOD_S)
    outcome: dict[str, Any] = answer
    return outcome


def failure(answer: dict[str, Any], before: str, now: str) -> str:
    """What is said of a guest that has not moved; its status was `before` and is `now`."""
    why = answer.get("error-desc") or "the migration was cancelled"
    if now == "running":
        return f"the guest has not moved: {why}; it goes on here"
    if now == before:
        return f"the guest has not moved: {why}; it is still {now} here"
    if now in ("shutdown", "guest-panicked"):
        return f"the guest has not moved: {why}; it has ended here"
    return f"it is not known whether the guest has moved: {why}"


def summary(answer: dict[str, Any]) -> str:
    """What is said of a guest that has moved."""
    ram, unused = answer["ram"], answer["unused-pages"]
    left_out = f"{unused['skipped']:,} pages, {format_size(unused['skipped'] * PAGE_BYTES)}"
    return (
        f"the guest has moved in {answer['total-time'] / 1000:.2f} s, of which it stood still"
        f" {answer['downtime'] / 1000:.2f} s; sent {format_size(ram['transferred'])} in"
        f" {ram['dirty-sync-count']} rounds; left out as unused: {left_out} ({unused['how']})"
    )


@contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Signals that would end us are put into the list for the length of the block instead.

    In the middle of a request an exception would leave an answer that nobody expects.
    """
    caught: list[int] = []
    former = {
        number: signal.signal(number, lambda number, frame: caught.append(number))
        for number in _CANCELLING_SIGNALS
    }
    try:
        yield caught
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


# --- What is shown meanwhile ----------------------------------------------------------------------
def progress_line(answer: dict[str, Any]) -> str:
    """How far the migration is."""
    ram = answer["ram"]
    slowed = answer.get("cpu-throttle-percentage", 0)
    return (
        f"{format_size(ram['transferred'])} sent, {format_size(ram['remaining'])} left,"
        f" round {ram['dirty-sync-count'] + 1}"
        + (f", the guest slowed down by {slowed} %" if slowed else "")
    )


@contextmanager
def _view(destination: str) -> Iterator[Show]:
    """A bar on a terminal, a line now and then anywhere else; both on standard error."""
    if not sys.stderr.isatty():
        yield _Lines(destination).show
        return
    from rich.console import Console  # late: slow to import
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[line]}, {task.fields[rate]}/s"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("moving", total=None, line=f"to {destination}", rate="0 B")

        def show(answer: dict[str, Any]) -> None:
            ram = answer["ram"]
            rest = ram["remaining"]  # an estimate: of zeros nothing is sent, and changes come
            progress.update(
                task,
                description=answer["status"],
                completed=ram["transferred"],
                total=ram["transferred"] + rest if rest else None,
                line=progress_line(answer),
                rate=format_size(int(progress.tasks[0].speed or 0)),
            )

        yield show


class _Lines:
    """A line at first, and another whenever nothing was said for long."""

    def __init__(self, destination: str) -> None:
        _say(f"moving the guest to {destination}")
        self._said_at = time.monotonic()

    def show(self, answer: dict[str, Any]) -> None:
        if time.monotonic() >= self._said_at + QUIET_SECONDS:
            _say(progress_line(answer))
            self._said_at = time.monotonic()


def _say(text: str) -> None:
    print(f"pyvmm: {text}", file=sys.stderr, flush=True)
