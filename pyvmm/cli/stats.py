# SPDX-License-Identifier: Apache-2.0
"""`pyvmm stats`: show a guest's memory statistics, once or periodically.

The guest measures every figure after the command requests it. When it does not answer in time, the
command reports that; a table that stays on the screen shows the time of its figures and is marked
as out of date.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import click

from pyvmm.cli.json_output import json_option, print_json
from pyvmm.cli.options import parse_seconds, qmp_option, timeout_option
from pyvmm.cli.qmp_command import EXIT_NOT_DONE, run_qmp_command
from pyvmm.qmp.client import ConnectionClosedError, QmpClient
from pyvmm.qmp.messages import QmpError
from pyvmm.standard_streams.text import print_message

if TYPE_CHECKING:
    from pyvmm.cli.stats_tables import StatsReply

_NO_RESPONSE = "DeviceNotActive"


@click.command()
@qmp_option
@click.option(
    "--watch",
    "watch_s",
    is_flag=False,
    flag_value="2",
    type=parse_seconds,
    metavar="[S]",
    help="Repeat every S seconds, by default 2, and show the changes.",
)
@timeout_option(5.0, "Wait this many seconds for the guest's answer.")
@json_option
def stats(address: str, watch_s: float | None, timeout_s: float, as_json: bool) -> int:
    """Show the memory statistics that a running guest reports.

    The guest's balloon driver measures them when the command requests them. A statistic that its
    kernel does not report is shown as absent, which is not the same as 0; one that has no known
    name is shown by its tag.

    \b
    Show them once, then every half second until Ctrl-C:
      pyvmm stats --qmp unix:/tmp/vm.sock
      pyvmm stats --qmp unix:/tmp/vm.sock --watch 0.5

    \b
    Print how many bytes the guest could use without swapping:
      pyvmm stats --qmp unix:/tmp/vm.sock --json | jq '.stats["stat-available-memory"]'

    With --watch, --json prints one line for each answer.

    Without --watch, a guest that is paused or runs no balloon driver is not waited for.

    The exit status is 0 when the guest answered, 1 when it did not or cannot answer, or ended, 2
    when the request was invalid.
    """

    def work(client: QmpClient) -> int:
        with _view(as_json, in_place=watch_s is not None) as view:
            if watch_s is None:
                return _show_once(client, view, timeout_s)
            _watch(client, view, watch_s, timeout_s)
        return 0

    return run_qmp_command(address, "pyvmm stats", work, guest_timeout_s=timeout_s)


class _View(Protocol):
    """The form in which answers are shown: tables or lines of JSON."""

    def show(self, answer: StatsReply, before: StatsReply | None) -> None:
        """Show `answer`, and how it differs from the one `before` it."""

    def no_answer(self, why: str) -> None:
        """Show that there is no answer, and the reason."""


class _JsonLines:
    """A view of one line of JSON for each answer."""

    def show(self, answer: StatsReply, before: StatsReply | None) -> None:
        print_json(answer)

    def no_answer(self, why: str) -> None:
        print_message(why)


@contextmanager
def _view(as_json: bool, in_place: bool) -> Iterator[_View]:
    """Choose the view; a table is updated in place only on a terminal."""
    if as_json:
        yield _JsonLines()
        return
    # Late: saves 28 ms (rich) with --json.
    from pyvmm.cli.stats_tables import LiveTable, Tables

    if in_place and sys.stdout.isatty():
        view = LiveTable()
        with view.live:
            yield view
    else:
        yield Tables()


def _show_once(client: QmpClient, view: _View, timeout_s: float) -> int:
    if why := _no_answer_possible(client):
        _show_reason(view, why)
        return EXIT_NOT_DONE
    answer = _request(client, view, timeout_s)
    if answer is None:
        return EXIT_NOT_DONE
    view.show(answer, None)
    return 0


def _watch(client: QmpClient, view: _View, period_s: float, timeout_s: float) -> None:
    """Show an answer every `period_s`; raises `ConnectionClosedError` when the guest ends."""
    before: StatsReply | None = None
    while True:
        next_at = time.monotonic() + period_s
        answer = _request(client, view, timeout_s)
        if answer is not None:
            view.show(answer, before)
            before = answer
        while True:
            event = client.wait_for_event(max(0.0, next_at - time.monotonic()))
            if event is None:
                break
            if event.get("event") == "SHUTDOWN":
                raise ConnectionClosedError


def _request(client: QmpClient, view: _View, timeout_s: float) -> StatsReply | None:
    """Return fresh statistics, or None after `view` has shown why there are none."""
    try:
        answer: StatsReply = client.execute("query-balloon-stats", timeout=timeout_s)
    except QmpError as error:
        if error.error_class != _NO_RESPONSE:
            raise
        _show_reason(view, error.desc)
        return None
    return answer


def _no_answer_possible(client: QmpClient) -> str:
    """Return why the guest cannot answer now; "" if it can.

    A request waits for a guest to resume, or for its driver to start, as --watch needs it.
    """
    if client.execute("query-status")["status"] == "paused":
        return "the guest is paused and cannot respond"
    if client.execute("query-balloon").get("driver") is False:
        return "the guest runs no balloon driver"
    return ""


def _show_reason(view: _View, why: str) -> None:
    # Late: saves 14 ms (the errors of every package) without an error.
    from pyvmm.cli.remedies import reported_remedy

    view.no_answer("; ".join(filter(None, (why, reported_remedy(why)))))
