# SPDX-License-Identifier: Apache-2.0
"""`pyvmm recording`: show what a recording holds, print its events, or export them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from pyvmm.cli.event_filter import Filter, filter_options
from pyvmm.cli.json_output import json_option, print_json
from pyvmm.files.errors import OutputNotWritten
from pyvmm.files.output import check_output
from pyvmm.files.replacement import ReplacementFile
from pyvmm.progress.late import LateProgress
from pyvmm.standard_streams.text import print_line, print_message
from pyvmm.trace.batches import batches_of
from pyvmm.trace.export import FORMATS, event_json
from pyvmm.trace.logging import fields_text
from pyvmm.trace.recording import Recording
from pyvmm.trace.recording_format import decode_chunk_header, encode_chunk
from pyvmm.trace.stream import TraceEvent
from pyvmm.units import format_size

_NS = 1_000_000_000
_SHOWN_KINDS = 12
_HTML = "html"
_CHOSEN = "Only the events that were chosen for this page are here, with numbers of their own"
"""A note of a page that has not all events of its recording."""
_IN_PLACE = ("device", "queue")
"""Fields that a line shows as the place of the event."""


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
@filter_options
@click.option("--json", "as_json", is_flag=True, help="Print each event as JSON, on its own line.")
def events(file: Path, as_json: bool, **chosen: Any) -> None:
    """Print the events of FILE, one on each line: time in seconds, place, kind and fields."""
    with _open(file) as opened:
        for event in Filter(**chosen).select(opened.events(), opened.start_ns):
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
    type=click.Choice([*FORMATS, _HTML]),
    required=True,
    help="JSON lines, a trace for ui.perfetto.dev, or the scope as one page that needs no network.",
)
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, metavar="FILE", help="Where to."
)
@filter_options
def export(file: Path, name: str, output: Path, **chosen: Any) -> None:
    """Write the events of FILE to --output in another format.

    A file that is there is replaced only if it is an export of the same format.
    """
    with _open(file) as opened, LateProgress("Exporting events", opened.event_count) as progress:
        start, parts = _exported(name, opened, Filter(**chosen), progress)
        target = check_output(output, start)
        try:
            with ReplacementFile(target) as replacement:
                with os.fdopen(os.dup(replacement.fd), "wb") as stream:
                    stream.writelines(parts)
                replacement.commit()
        except OSError as error:
            raise OutputNotWritten(f"{output} cannot be written: {error.strerror}") from error


def _exported(
    name: str, opened: Recording, chosen: Filter, progress: LateProgress
) -> tuple[bytes, Iterator[bytes]]:
    """Return the first bytes of any file of a format, and the parts of one with the events."""
    events = chosen.select(_counted_events(opened, progress), opened.start_ns)
    if name != _HTML:
        return FORMATS[name].start, FORMATS[name].export(events)
    # Late: saves 10 ms (hashlib, the reference of all kinds) in other commands and formats.
    from pyvmm.scope.html_export import START, html_page
    from pyvmm.scope.recorded_guest import describe_recording

    source = describe_recording(opened)
    if chosen.is_everything:
        return START, html_page(_counted_chunks(opened, progress), source)
    source["notes"].append(_CHOSEN)
    return START, html_page(map(encode_chunk, batches_of(events, opened.start_ns)), source)


def _counted_events(opened: Recording, progress: LateProgress) -> Iterator[TraceEvent]:
    for event in opened.events():
        yield event
        progress.advance()


def _counted_chunks(opened: Recording, progress: LateProgress) -> Iterator[bytes]:
    for chunk in opened.chunks():
        yield chunk
        header = decode_chunk_header(chunk)
        assert header is not None
        progress.advance(header.event_count)


def _open(file: Path) -> Recording:
    opened = Recording(file)
    for note in opened.notes:
        print_message(f"{file}: {note}")
    return opened
