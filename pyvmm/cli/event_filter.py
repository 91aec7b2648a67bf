# SPDX-License-Identifier: Apache-2.0
"""The choice of events that a person asks for, for the commands that print or export events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import click

from pyvmm.cli.options import parse_seconds
from pyvmm.trace.stream import TraceEvent

_Command = TypeVar("_Command", bound=Callable[..., Any])
_NS = 1_000_000_000


class Filter(NamedTuple):
    """The events that a person asks for; empty sequences and None ask for all."""

    devices: Sequence[str]
    queues: Sequence[str]
    kinds: Sequence[str]
    since_s: float | None
    until_s: float | None

    @property
    def is_everything(self) -> bool:
        """True if no event is left out."""
        return not any(self[:3]) and self.since_s is None and self.until_s is None

    def select(self, events: Iterable[TraceEvent], start_ns: int) -> Iterator[TraceEvent]:
        """Yield those of `events`, which are in order; times count from `start_ns`."""
        for event in events:
            seconds = (event.time_ns - start_ns) / _NS
            if self.until_s is not None and seconds > self.until_s:
                return
            if (
                (self.since_s is None or seconds >= self.since_s)
                and (not self.devices or event.device in self.devices)
                and (not self.queues or event.queue in self.queues)
                and (not self.kinds or event.kind in self.kinds)
            ):
                yield event


def filter_options(command: _Command) -> _Command:
    """Give a command the options of `Filter`, as parameters of the same names."""
    for option in (
        click.option(
            "--until",
            "until_s",
            type=parse_seconds,
            metavar="S",
            help="Only events up to S seconds after the first.",
        ),
        click.option(
            "--since",
            "since_s",
            type=parse_seconds,
            metavar="S",
            help="Only events from S seconds after the first.",
        ),
        click.option(
            "--kind", "kinds", multiple=True, metavar="NAME", help="Only events of this kind."
        ),
        click.option(
            "--queue", "queues", multiple=True, metavar="NAME", help="Only events of this queue."
        ),
        click.option(
            "--device", "devices", multiple=True, metavar="NAME", help="Only events of this device."
        ),
    ):
        command = option(command)
    return command
