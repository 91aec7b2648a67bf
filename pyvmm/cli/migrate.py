# SPDX-License-Identifier: Apache-2.0
"""`pyvmm migrate`: migrate a running guest to a pyvmm that waits for it with `--incoming`.

The guest's own process sends it. The command starts that over QMP, shows the progress and reports
the result. A signal cancels the migration and does not end the command: it waits for the result,
so that its last message always says on which side the guest is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyvmm.cli.collected_signals import collected_signals
from pyvmm.cli.json_output import json_option, print_json
from pyvmm.cli.options import (
    parse_size_value,
    qmp_option,
    security,
    security_options,
    unused_option,
)
from pyvmm.cli.qmp_command import EXIT_NOT_DONE, run_qmp_command
from pyvmm.progress.live_bar import live_bar
from pyvmm.qmp.client import ConnectionClosedError, QmpClient
from pyvmm.sockets.addresses import UnixAddress, parse_migration_address
from pyvmm.standard_streams.text import print_line, print_message
from pyvmm.units import format_size
from pyvmm_native import PAGE_BYTES

if TYPE_CHECKING:
    from pyvmm.sockets.tls import Security

POLL_PERIOD_S = 0.1
SWITCHOVER_TIMEOUT_S = 30.0
"""Longest time for which the source serves no requests, as it is in the switchover."""
LINE_PERIOD_S = 10.0
_ENDED = ("completed", "failed", "cancelled")

Show = Callable[[dict[str, Any]], None]
"""Shows an answer of query-migrate."""


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
    help="Longest pause of the guest for the switchover.",
)
@click.option(
    "--max-bandwidth",
    type=parse_size_value,
    default="0",
    show_default=True,
    metavar="SIZE",
    help="Send at most this much per second while the guest runs; 0 is no limit.",
)
@unused_option
@click.option(
    "--auto-converge",
    is_flag=True,
    help="Throttle the guest while it writes memory faster than it can be sent.",
)
@click.option(
    "--checksum",
    type=click.Choice(["auto", "crc32c", "xxh3", "none"]),
    default="auto",
    show_default=True,
    help="Checksum of memory; auto is the fastest that both sides have, none is for unix sockets.",
)
@click.option(
    "--streams",
    type=click.IntRange(1, 16),
    default=1,
    show_default=True,
    metavar="N",
    help="Send memory on N connections at once, each with a thread on either side.",
)
@security_options
@click.option("--keep", is_flag=True, help="Keep the source process when its guest has moved.")
@json_option
def migrate(
    destination: str,
    address: str,
    downtime_ms: int,
    max_bandwidth: int,
    query_unused: bool,
    auto_converge: bool,
    checksum: str,
    streams: int,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    insecure: bool,
    keep: bool,
    as_json: bool,
) -> int:
    """Migrate a running guest to the pyvmm that waits for it at ADDRESS.

    ADDRESS is tcp:HOST:PORT or unix:PATH. The guest runs while its memory is copied and is paused
    for the switchover at the end; at most one side runs it at any time. When it has moved, its
    process here ends. Ctrl-C cancels the migration, and the guest continues here.

    \b
    On one host, from one terminal to another:
      pyvmm run --incoming unix:/tmp/m --qmp unix:/tmp/there.sock
      pyvmm migrate unix:/tmp/m --qmp unix:/tmp/vm.sock

    \b
    To another host, each side with a certificate signed by the other side's CA:
      pyvmm run --incoming tcp:0.0.0.0:4444 --tls-ca ca.pem --tls-cert b.pem --tls-key b.key
      pyvmm migrate tcp:b:4444 --qmp unix:/tmp/vm.sock \\
          --tls-ca ca.pem --tls-cert a.pem --tls-key a.key

    The exit status is 0 when the guest has moved, 1 when it has not, 2 when the request was
    invalid.
    """
    protection = security(tls_ca, tls_cert, tls_key, insecure)
    request = {
        "uri": _absolute_address(destination, protection),
        "unused": query_unused,
        "insecure": insecure,
        "checksum": checksum,
        "multifd-channels": streams,
    }
    if (tls := protection.tls) is not None:
        files = {"tls-ca": tls.ca, "tls-cert": tls.certificate, "tls-key": tls.key}
        request |= {name: str(path) for name, path in files.items()}
    limits = {"downtime-limit": downtime_ms, "max-bandwidth": max_bandwidth}
    capability = {"capability": "auto-converge", "state": auto_converge}

    def work(client: QmpClient) -> int:
        client.execute("migrate-set-parameters", **limits)
        client.execute("migrate-set-capabilities", capabilities=[capability])
        return _migrate(client, request, keep, as_json)

    return run_qmp_command(address, "pyvmm migrate", work, guest_timeout_s=SWITCHOVER_TIMEOUT_S)


def _absolute_address(destination: str, protection: Security) -> str:
    """Return the address for the guest's process, whose working directory may be another.

    Raises `UserError` for an address that needs other protection.
    """
    address = parse_migration_address(destination)
    if isinstance(address, UnixAddress):
        address = parse_migration_address(f"unix:{address.path.absolute()}")
    protection.check(address)
    return str(address)


def _migrate(client: QmpClient, request: dict[str, Any], keep: bool, as_json: bool) -> int:
    before = client.execute("query-status")["status"]
    with collected_signals() as signals:
        client.execute("migrate", **request)
        try:
            with _view(request["uri"]) as show:
                answer = _wait(client, signals, show)
            now = client.execute("query-status")["status"]
        except ConnectionClosedError:
            print_message(
                "the guest's process ended before it reported the result of the migration;"
                " check whether the guest runs at the destination"
            )
            return EXIT_NOT_DONE
    if as_json:
        print_json({"downtime": None, "error-desc": None, **answer, "source-status": now})
    if answer["status"] != "completed":
        print_message(failure(answer, before, now))
        return EXIT_NOT_DONE
    if not as_json:
        print_line(summary(answer))
    if not keep:
        with suppress(ConnectionClosedError):
            client.execute("quit")
    return 0


def _wait(client: QmpClient, signals: list[int], show: Show) -> dict[str, Any]:
    """Show progress until the migration has ended; returns the last answer of `query-migrate`."""
    cancelled = False
    while (answer := client.execute("query-migrate"))["status"] not in _ENDED:
        if signals and not cancelled:
            client.execute("migrate_cancel")
            cancelled = True
        show(answer)
        time.sleep(POLL_PERIOD_S)
    ended: dict[str, Any] = answer
    return ended


def failure(answer: dict[str, Any], before: str, now: str) -> str:
    """Return the line for a guest that has not moved; its status was `before` and is `now`."""
    # Late: saves 14 ms (the errors of every package) without an error.
    from pyvmm.cli.remedies import reported_remedy

    why = answer.get("error-desc") or "the migration was cancelled"
    return "; ".join(filter(None, (_result(why, before, now), reported_remedy(why))))


def _result(why: str, before: str, now: str) -> str:
    if now == "running":
        return f"the guest has not moved: {why}; it still runs here"
    if now == before:
        return f"the guest has not moved: {why}; it is still {now} here"
    if now in ("shutdown", "guest-panicked"):
        return f"the guest has not moved: {why}; it has ended here"
    return f"the guest may or may not have moved: {why}"


def summary(answer: dict[str, Any]) -> str:
    """Return the line that reports a completed migration."""
    ram, unused = answer["ram"], answer["unused-pages"]
    left_out = f"{unused['skipped']:,} pages, {format_size(unused['skipped'] * PAGE_BYTES)}"
    return (
        f"the guest has moved in {answer['total-time'] / 1000:.2f} s, downtime"
        f" {answer['downtime'] / 1000:.2f} s; sent {format_size(ram['transferred'])} in"
        f" {ram['dirty-sync-count']} rounds; left out as unused: {left_out} ({unused['how']})"
    )


# --- Progress -------------------------------------------------------------------------------------
def progress_line(answer: dict[str, Any]) -> str:
    """Return the progress of the migration in one line."""
    ram = answer["ram"]
    throttled = answer.get("cpu-throttle-percentage", 0)
    return (
        f"{format_size(ram['transferred'])} sent, {format_size(ram['remaining'])} left,"
        f" round {ram['dirty-sync-count'] + 1}"
        + (f", guest throttled by {throttled} %" if throttled else "")
    )


@contextmanager
def _view(destination: str) -> Iterator[Show]:
    """Show a bar on a terminal, a line every `LINE_PERIOD_S` elsewhere; both on standard error."""
    if not sys.stderr.isatty():
        yield _Lines(destination).show
        return
    with live_bar(f"migrating to {destination}") as bar:

        def show(answer: dict[str, Any]) -> None:
            sent, left = answer["ram"]["transferred"], answer["ram"]["remaining"]
            rate = format_size(int(bar.units_per_second))
            # `left` is an estimate: zero pages are not sent, and the guest changes others.
            total = sent + left if left else None
            bar.show(answer["status"], sent, total, f"{progress_line(answer)}, {rate}/s")

        yield show


class _Lines:
    """One line at the start and one every `LINE_PERIOD_S`."""

    def __init__(self, destination: str) -> None:
        print_message(f"migrating the guest to {destination}")
        self._printed_at = time.monotonic()

    def show(self, answer: dict[str, Any]) -> None:
        if time.monotonic() >= self._printed_at + LINE_PERIOD_S:
            print_message(progress_line(answer))
            self._printed_at = time.monotonic()
