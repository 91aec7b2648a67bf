# SPDX-License-Identifier: Apache-2.0
"""`pyvmm recording`: show what a recording holds, print its events, or export them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from pyvmm.cli.json_output import json_option, print_json
from pyvmm.cli.options import parse_seconds
from pyvmm.files.errors import OutputNotWritten
from pyvmm.files.output import check_output
from pyvmm.files.replacement import ReplacementFile
from pyvmm.standard_streams.text import print_line, print_message
from pyvmm.trace.export import FORMATS, event_json
from pyvmm.trace.logging import fields_text
from pyvmm.trace.recording import Recording
from pyvmm.trace.stream import TraceEvent
from pyvmm.units import format_size

_Command = TypeVar("_Command", bound=Callable[..., Any])
_NS = 1_000_000_000
_SHOWN_KINDS = 12
_IN_PLACE = ("device", "queue")
"""Fields that a line shows as the place of the event."""


class Filter(NamedTuple):
    """The events that a person asks for; empty sequences and None ask for all."""

    devices: Sequence[str]
    queues: Sequence[str]
    kinds: Sequence[str]
    since_s: float | None
    until_s: float | None

    def select(self, recording: Recording) -> Iterator[TraceEvent]:
        """Yield those events of `recording`."""
        start = recording.start_ns
        for event in recording.events():
            seconds = (event.time_ns - start) / _NS
            if self.until_s is not None and seconds > self.until_s:
                return
            if (
                (self.since_s is None or seconds >= self.since_s)
                and (not self.devices or event.device in self.devices)
                and (not self.queues or event.queue in self.queues)
                and (not self.kinds or event.kind in self.kinds)
            ):
                yield event


def _filter_options(command: _Command) -> _Command:
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


@click.group()
def recording() -> None:
    """Show or export the events of a guest that 'pyvmm run --record FILE' has recorded.

    \b
    Record a boot and look at it:
      pyvmm run guest.img --record boot.rec
      pyvmm recording info boot.rec
      pyvmm recording events boot.rec --device balloon --kind descriptor
      pyvmm recording export boot.rec --format html --output boot.html

    FILE can be read while it is still being written.

    The exit status is 0 when the command has succeeded, and 2 when FILE is damaged, no recording or
    one of another version, or the output cannot be written.
    """


@recording.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def info(file: Path, as_json: bool) -> None:
    """Check all of FILE and show its duration, its size and the events of each kind."""
    with _open(file) as opened:
        document = _summary(opened)
    if as_json:
        print_json(document)
        return
    print_line(
        f"{file}: {document['events']} events in {document['seconds']:.3f} s,"
        f" {format_size(document['file-bytes'])}, {document['bytes-per-event']:.2f} bytes an event"
    )
    print_line(f"written by pyvmm {document['pyvmm']}")
    if document["dropped"]:
        print_line(f"missing: {document['dropped']} events came too fast")
    for what in ("devices", "kinds"):
        counts = document[what]
        shown = sorted(counts, key=lambda name: -counts[name])[:_SHOWN_KINDS]
        more = f", {len(counts) - len(shown)} more" if len(counts) > len(shown) else ""
        print_line(f"{what}: {', '.join(f'{name} {counts[name]}' for name in shown)}{more}")


def _summary(opened: Recording) -> dict[str, Any]:
    """Return the document of `pyvmm recording info --json`; reads all events."""
    kinds: Counter[str] = Counter()
    devices: Counter[str] = Counter()
    last_ns = opened.start_ns
    for event in opened.events():
        kinds[event.kind] += 1
        devices[event.device or "machine"] += 1
        last_ns = event.time_ns
    return {
        "file": str(opened.path),
        "file-bytes": opened.size_bytes,
        "limit": opened.limit_bytes or None,
        "pyvmm": str(opened.description.get("pyvmm", "")),
        "events": opened.event_count,
        "dropped": opened.dropped,
        "seconds": (last_ns - opened.start_ns) / _NS,
        "bytes-per-event": opened.chunk_bytes / max(opened.event_count, 1),
        "kinds": dict(sorted(kinds.items())),
        "devices": dict(sorted(devices.items())),
    }


@recording.command()
@click.argument("file", type=click.Path(path_type=Path))
@_filter_options
@click.option("--json", "as_json", is_flag=True, help="Print each event as JSON, on its own line.")
def events(file: Path, as_json: bool, **chosen: Any) -> None:
    """Print the events of FILE, one on each line: time in seconds, place, kind and fields."""
    with _open(file) as opened:
        for event in Filter(**chosen).select(opened):
            print_line(event_json(event) if as_json else _line(event, opened.start_ns))


def _line(event: TraceEvent, start_ns: int) -> str:
    where = " ".join(filter(None, (event.device or "machine", event.queue)))
    others = {name: event.fields[name] for name in event.fields if name not in _IN_PLACE}
    seconds = (event.time_ns - start_ns) / _NS
    return f"{seconds:.6f} {where} {event.kind} {fields_text(others)}".replace("\n", " ")


@recording.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "name",
    type=click.Choice(list(FORMATS)),
    required=True,
    help="JSON lines, a trace for ui.perfetto.dev, or one page that needs no network.",
)
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, metavar="FILE", help="Where to."
)
@_filter_options
def export(file: Path, name: str, output: Path, **chosen: Any) -> None:
    """Write the events of FILE to --output in another format.

    A file that is there is replaced only if it is an export of the same format.
    """
    chosen_format = FORMATS[name]
    with _open(file) as opened:
        target = check_output(output, chosen_format.start)
        found = Filter(**chosen).select(opened)
        try:
            with ReplacementFile(target) as replacement:
                with os.fdopen(os.dup(replacement.fd), "wb") as stream:
                    stream.writelines(chosen_format.export(found))
                replacement.commit()
        except OSError as error:
            raise OutputNotWritten(f"{output} cannot be written: {error.strerror}") from error


def _open(file: Path) -> Recording:
    opened = Recording(file)
    for note in opened.notes:
        print_message(f"{file}: {note}")
    return opened
