# SPDX-License-Identifier: Apache-2.0
"""The growth of the counters of guests between two queries, and the table of `pyvmm top`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pyvmm.cli.guest_states import GuestState
from pyvmm.cli.ps import size_or_dash
from pyvmm.cli.text_table import table_lines
from pyvmm.units import format_size

EXIT_COLUMNS = {
    "pio": "PIO/s",
    "mmio": "MMIO/s",
    "fast-path": "FAST/s",
    "interrupted": "INTR/s",
    "other": "OTHER/s",
}
COLUMNS = ("NAME", "STATUS", "RAM", "ACTUAL", "RSS", *EXIT_COLUMNS.values(), "REQUESTS/s")
_RIGHT = " ".join(("RAM", "ACTUAL", "RSS", *EXIT_COLUMNS.values()))


class GuestRates(NamedTuple):
    """A guest, with its rates; None before its second answer."""

    state: GuestState
    exits: Mapping[str, float] | None
    """Exits per second, by reason."""
    requests: Mapping[str, float] | None
    """Requests per second, by device."""


SORT_KEYS = {
    "name": lambda rates: rates.state.guest.name,
    "RSS": lambda rates: -(rates.state.rss_bytes or 0),
    "exits": lambda rates: -sum((rates.exits or {}).values()),
    "requests": lambda rates: -sum((rates.requests or {}).values()),
}
"""The orders of the table; all but names with the largest figure first."""


def rates_between(before: Sequence[GuestState], now: Sequence[GuestState]) -> list[GuestRates]:
    """Return the guests of `now` with their rates since `before`."""
    earlier = {_process(state): state for state in before}
    return [_rates(earlier.get(_process(state)), state) for state in now]


def rate_lines(guests: Sequence[GuestRates], order: str = "name") -> list[str]:
    """Return the lines of the table of `guests`, in one of the orders of `SORT_KEYS`."""
    ordered = sorted(guests, key=SORT_KEYS[order])
    return table_lines(COLUMNS, [_row(rates) for rates in ordered], _RIGHT)


def _process(state: GuestState) -> tuple[str, int, int]:
    """Return what tells the guest from a later one with its name."""
    return state.guest.name, state.guest.pid, state.guest.pid_start_time


def _rates(before: GuestState | None, now: GuestState) -> GuestRates:
    if before is None or before.counters is None or now.counters is None:
        return GuestRates(now, None, None)
    seconds = now.time - before.time
    if seconds <= 0:
        return GuestRates(now, None, None)
    exits = {
        reason: (count - before.counters["exits"].get(reason, 0)) / seconds
        for reason, count in now.counters["exits"].items()
    }
    requests = dict.fromkeys((queue["device"] for queue in now.counters["queues"]), 0.0)
    for sign, counters in ((1, now.counters), (-1, before.counters)):
        for queue in counters["queues"]:
            requests[queue["device"]] += sign * queue["requests"] / seconds
    return GuestRates(now, exits, requests)


def _row(rates: GuestRates) -> list[str]:
    state, exits, requests = rates
    busy = {device: rate for device, rate in (requests or {}).items() if rate > 0}
    return [
        state.guest.name,
        state.status,
        format_size(state.ram_bytes),
        size_or_dash(state.actual_bytes),
        size_or_dash(state.rss_bytes),
        *("-" if exits is None else _figure(exits.get(reason, 0)) for reason in EXIT_COLUMNS),
        ", ".join(f"{device} {_figure(rate)}" for device, rate in busy.items()) or "-",
    ]


def _figure(rate: float) -> str:
    """Return a rate as a whole number, or with a decimal below 10."""
    return f"{rate:.1f}" if 0 < rate < 9.95 else f"{rate:.0f}"
