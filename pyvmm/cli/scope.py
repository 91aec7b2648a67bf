# SPDX-License-Identifier: Apache-2.0
"""`pyvmm scope`: show the events of a guest or of a recording, in a browser or as text."""

from __future__ import annotations

import contextlib
import io
import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyvmm.cli.errors import CommandError
from pyvmm.cli.event_filter import Filter, filter_options
from pyvmm.cli.options import given_parameters, named_guest, optional_qmp_option
from pyvmm.cli.qmp_command import run_qmp_command
from pyvmm.sockets.addresses import parse_unix_address
from pyvmm.standard_streams.text import print_message

if TYPE_CHECKING:
    from pyvmm.qmp.client import QmpClient

_COMMAND = "pyvmm scope"
_FILTERS = ("devices", "queues", "kinds", "since_s", "until_s")


@click.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@optional_qmp_option
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    metavar="N",
    help="Serve the page at this port of 127.0.0.1; by default at any free one.",
)
@click.option(
    "--open/--no-open",
    "opens",
    default=None,
    help="Open the page in a browser; by default if there is a display.",
)
@click.option("--text", "as_text", is_flag=True, help="Print the events instead, a line for each.")
@filter_options
def scope(
    file: Path | None,
    address: str | None,
    port: int | None,
    opens: bool | None,
    as_text: bool,
    **chosen: Any,
) -> int:
    """Show what happens between a guest and its devices: of a running guest, or in a recording.

    FILE is a recording of 'pyvmm run --record FILE'. The page is served at the address that is
    printed, to browsers on this host that have it, until Ctrl-C. One scope watches a guest at a
    time. The guest does not wait for it, except when you stop it with Step; it resumes when the
    page has been closed for 10 s.

    \b
    Watch a guest, then look at a recording, then at the balloon in a terminal:
      pyvmm scope --qmp unix:/tmp/vm.sock
      pyvmm scope boot.rec
      pyvmm scope boot.rec --text --device balloon

    With --text, the options that choose events are those of 'pyvmm recording events'.

    The exit status is 0 when the command has been ended by Ctrl-C, or has printed all of FILE, 1
    when the guest has ended, and 2 when its events or FILE cannot be read.
    """
    if file is not None and address is not None:
        if list(given_parameters(["address"])):
            raise CommandError("a recording and a running guest are given", "leave one out")
        address = None  # of the environment
    if file is None and address is None:
        raise click.UsageError("Give a recording, or a running guest with --qmp or --vm")
    if as_text:
        if given := list(given_parameters(["port", "opens"])):
            raise CommandError(f"{given[0]} has no effect with --text", "leave one out")
        return _print_text(file, address, Filter(**chosen))
    if given := list(given_parameters(_FILTERS)):
        raise CommandError(f"{given[0]} chooses events to print", "add --text")
    # Late: saves 60 ms (tornado) with --text and in errors.
    from pyvmm.cli.scope_server import has_display, serve
    from pyvmm.scope.live_guest import LiveGuest
    from pyvmm.scope.recorded_guest import RecordedGuest

    source: LiveGuest | RecordedGuest
    if file is not None:
        source = RecordedGuest(file)
    else:
        assert address is not None
        source = LiveGuest(parse_unix_address(address), named_guest() or address)
    return serve(source, port or 0, has_display() if opens is None else opens)


def _print_text(file: Path | None, address: str | None, chosen: Filter) -> int:
    # Late: saves 20 ms (the recording format) with the page.
    from pyvmm.cli.event_log import print_events
    from pyvmm.scope.watched_events import watched_events
    from pyvmm.trace.recording import Recording

    if file is not None:
        with Recording(file) as opened:
            for note in opened.notes:
                print_message(f"{file}: {note}")
            print_events(chosen.select(opened.events(), opened.start_ns), opened.start_ns)
        return 0

    def work(client: QmpClient) -> int:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(line_buffering=True)  # a reader sees each event as it happens
        with contextlib.suppress(KeyboardInterrupt):
            events = watched_events(client)
            first = next(events)
            print_events(chosen.select(chain([first], events), first.time_ns), first.time_ns)
        return 0

    assert address is not None
    return run_qmp_command(address, _COMMAND, work)
