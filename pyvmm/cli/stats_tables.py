# SPDX-License-Identifier: Apache-2.0
"""A guest's memory statistics as tables, one below the other or one that is updated in place.

`pyvmm.cli.stats` imports this module only when it prints tables: rich takes 23 ms to import.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from devices.balloon.stat_tags import BY_NAME
from pyvmm.standard_streams.rich_console import TextConsole
from pyvmm.standard_streams.text import print_message
from pyvmm.units import format_size

StatsReply = Mapping[str, Any]
"""The value of `query-balloon-stats`."""


class Tables:
    """Views of answers one below the other, for a file or a pipe."""

    def show(self, answer: StatsReply, before: StatsReply | None) -> None:
        TextConsole().print(table(answer, before))

    def no_answer(self, why: str) -> None:
        print_message(why)


class LiveTable:
    """A view of the latest answer, updated in place on a terminal while `live` is entered."""

    def __init__(self) -> None:
        self.live = Live(auto_refresh=False, console=TextConsole())
        self._table: Table | None = None

    def show(self, answer: StatsReply, before: StatsReply | None) -> None:
        self._table = table(answer, before)
        self.live.update(self._table, refresh=True)

    def no_answer(self, why: str) -> None:
        if self._table is None:
            self.live.update(why, refresh=True)
        else:
            self._table.caption = f"these figures are out of date: {why}"
            self.live.update(self._table, refresh=True)


def table(answer: StatsReply, before: StatsReply | None) -> Table:
    """Return `answer` as a table; with `before`, an earlier answer, also the changes since."""
    clock = time.strftime("%H:%M:%S", time.localtime(answer["time"]["seconds"]))
    result = Table(title=f"memory of the guest at {clock}")
    result.add_column("statistic")
    result.add_column("value", justify="right")
    if before is not None:
        result.add_column("change", justify="right")
    result.add_column("meaning", style="dim")
    for name, value in answer["stats"].items():
        known = BY_NAME.get(name)
        is_bytes = known is not None and known.is_bytes
        cells = [name.removeprefix("stat-").replace("-", " "), _value(value, is_bytes)]
        if before is not None:
            cells.append(_change(before["stats"].get(name), value, is_bytes))
        result.add_row(*cells, known.meaning if known else "")
    for tag, value in answer["unknown"].items():
        cells = [f"tag {tag}", _value(value, False)]
        if before is not None:
            cells.append(_change(before["unknown"].get(tag), value, False))
        result.add_row(*cells, "")
    return result


def _value(value: int | None, is_bytes: bool) -> str | Text:
    return Text("absent", style="dim") if value is None else _amount(value, is_bytes)


def _amount(value: int, is_bytes: bool) -> str:
    return format_size(value) if is_bytes else f"{value:,}"


def _change(before: int | None, now: int | None, is_bytes: bool) -> str:
    if before is None or now is None or before == now:
        return ""
    return ("+" if now > before else "") + _amount(now - before, is_bytes)
