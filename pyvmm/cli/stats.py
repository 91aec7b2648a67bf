# SPDX-License-Identifier: Apache-2.0
"""`pyvmm stats`: what a running guest says of its memory, once or again and again.

Every figure shown was measured by the guest after the command asked for it. A guest that does not
answer in time is said so; where a table stays on the screen meanwhile it carries the time of its
figures and says that they are not the present ones.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import click

from devices.balloon.stat_tags import BY_NAME
from pyvmm.cli.balloon import parse_seconds
from pyvmm.cli.monitor import EXIT_NOT_DONE, qmp_option, visit
from pyvmm.qmp.client import ConnectionClosedError, QmpClient
from pyvmm.qmp.messages import QmpError
from pyvmm.units import format_size

if TYPE_CHECKING:
    from rich.table import Table

_NO_ANSWER = "DeviceNotActive"

Answer = Mapping[str, Any]
"""The value of `query-balloon-stats`."""


@click.command()
@qmp_option
@click.option(
    "--watch",
    "watch_s",
    is_flag=False,
    flag_value="2",
    type=parse_seconds,
    metavar="[S]",
    help="Go on asking, every S seconds [default: 2], and show what changed.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON for each answer.")
@click.option(
    "--timeout",
    "timeout_s",
    type=parse_seconds,
    default=5.0,
    show_default=True,
    metavar="S",
    help="Wait so many seconds for the guest to answer.",
)
def stats(address: str, watch_s: float | None, as_json: bool, timeout_s: float) -> int:
    """Show what a running guest says of its memory.

    The guest's balloon driver is asked and measures anew, so the figures are those of this moment.
    What its kernel does not report is shown as absent, which is not the same as 0; statistics
    without a known name are shown by their number.

    \b
    Once, and then every half second until Ctrl-C:
      pyvmm stats --qmp unix:/tmp/vm.sock
      pyvmm stats --qmp unix:/tmp/vm.sock --watch 0.5

    \b
    How many bytes could the guest use without swapping?
      pyvmm stats --qmp unix:/tmp/vm.sock --json | jq '.stats["stat-available-memory"]'

    In JSON the names are those of QEMU's guest-stats and absent ones are null. The exit status is 0
    when the guest answered, 1 when it did not answer in time or ended, 2 when the request made no
    sense.
    """

    def work(client: QmpClient) -> int:
        if watch_s is None:
            return _show_once(client, _JsonLines() if as_json else _Tables(), timeout_s)
        with _view(as_json) as view:
            _watch(client, view, watch_s, timeout_s)
        return 0

    return visit(address, "pyvmm stats", work, guest_timeout_s=timeout_s)


class _View(Protocol):
    """Where answers are shown."""

    def show(self, answer: Answer, before: Answer | None) -> None: ...

    def no_answer(self, why: str) -> None: ...


class _JsonLines:
    def show(self, answer: Answer, before: Answer | None) -> None:
        print(json.dumps(answer), flush=True)

    def no_answer(self, why: str) -> None:
        print(f"pyvmm: {why}", file=sys.stderr, flush=True)


class _Tables:
    """One table below the other, for a file or a pipe."""

    def show(self, answer: Answer, before: Answer | None) -> None:
        from rich.console import Console  # late: slow to import

        Console().print(table(answer, before))

    def no_answer(self, why: str) -> None:
        print(f"pyvmm: {why}", file=sys.stderr, flush=True)


class _LiveTable:
    """One table in place, on a terminal."""

    def __init__(self) -> None:
        from rich.live import Live

        self.live = Live(auto_refresh=False)
        self._table: Table | None = None

    def show(self, answer: Answer, before: Answer | None) -> None:
        self._table = table(answer, before)
        self.live.update(self._table, refresh=True)

    def no_answer(self, why: str) -> None:
        if self._table is None:
            self.live.update(why, refresh=True)
        else:
            self._table.caption = f"not the present figures: {why}"
            self.live.update(self._table, refresh=True)


@contextmanager
def _view(as_json: bool) -> Iterator[_View]:
    if as_json:
        yield _JsonLines()
    elif not sys.stdout.isatty():
        yield _Tables()
    else:
        view = _LiveTable()
        with view.live:
            yield view


def _show_once(client: QmpClient, view: _View, timeout_s: float) -> int:
    answer = _ask(client, view, timeout_s)
    if answer is None:
        return EXIT_NOT_DONE
    view.show(answer, None)
    return 0


def _watch(client: QmpClient, view: _View, period_s: float, timeout_s: float) -> None:
    """Show answers for ever; raises `ConnectionClosedError` when the machine ends."""
    before: Answer | None = None
    while True:
        next_at = time.monotonic() + period_s
        answer = _ask(client, view, timeout_s)
        if answer is not None:
            view.show(answer, before)
            before = answer
        while True:
            event = client.wait_for_event(max(0.0, next_at - time.monotonic()))
            if event is None:
                break
            if event.get("event") == "SHUTDOWN":
                raise ConnectionClosedError


def _ask(client: QmpClient, view: _View, timeout_s: float) -> Answer | None:
    """Fresh statistics, or None after having said that there are none."""
    try:
        answer: Answer = client.execute("query-balloon-stats", timeout=timeout_s)
    except QmpError as error:
        if error.error_class != _NO_ANSWER:
            raise
        view.no_answer(error.desc)
        return None
    return answer


def table(answer: Answer, before: Answer | None) -> Table:
    """`answer` for people; with `before`, also what changed since."""
    from rich.table import Table

    clock = time.strftime("%H:%M:%S", time.localtime(answer["time"]["seconds"]))
    result = Table(title=f"memory of the guest at {clock}")
    result.add_column("statistic")
    result.add_column("value", justify="right")
    if before is not None:
        result.add_column("change", justify="right")
    result.add_column("what it is", style="dim")
    for name, value in answer["stats"].items():
        known = BY_NAME.get(name)
        is_bytes = known is not None and known.is_bytes
        cells = [name.removeprefix("stat-").replace("-", " "), _amount(value, is_bytes)]
        if before is not None:
            cells.append(_change(before["stats"].get(name), value, is_bytes))
        result.add_row(*cells, known.meaning if known else "")
    for tag, value in answer["unknown"].items():
        cells = [f"tag {tag}", _amount(value, False)]
        if before is not None:
            cells.append(_change(before["unknown"].get(tag), value, False))
        result.add_row(*cells, "")
    return result


def _amount(value: int | None, is_bytes: bool) -> str:
    if value is None:
        return "[dim]absent[/dim]"
    return format_size(value) if is_bytes else f"{value:,}"


def _change(before: int | None, now: int | None, is_bytes: bool) -> str:
    if before is None or now is None or before == now:
        return ""
    return ("+" if now > before else "") + _amount(now - before, is_bytes)
