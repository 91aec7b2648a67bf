# SPDX-License-Identifier: Apache-2.0
"""The buffers of the balloon, described for people, in all four dialects (VIRTIO 1.2, 5.5.6).

Queues after the first two have no names of their own: their roles follow from the dialect and the
features, as in the device.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice

from devices.balloon import bitmap, records
from devices.balloon.dialects import PFN_BYTES, Role, by_name
from devices.balloon.hinting import COMMAND_ID, DONE, STOP
from devices.balloon.misc import REQUEST, MiscCommand
from devices.balloon.stat_tags import STATISTICS
from devices.virtio.description import BufferBytes, Described, bounded, unpacked
from pyvmm_native import PAGE_BYTES
from pyvmm_native.runs import PageRuns

_PAGES, _STATS = "VIRTIO 1.2, 5.5.6", "VIRTIO 1.2, 5.5.6.4"
_HINTS, _REPORTS = "VIRTIO 1.2, 5.5.6.5", "VIRTIO 1.2, 5.5.6.7"
_BITMAP = "page bitmap extension, version 3"
_RECORDS = {
    "hybrid": "page bitmap extension, version 5",
    "ranges": "page bitmap extension, version 6",
}
_SHOWN_PAGES, _SHOWN_RUNS = 48, 4
_STATISTIC = struct.Struct("<HQ")


def describe(buffer: BufferBytes) -> list[Described]:
    """As `devices.virtio.description.Describe`; the property `dialect` names the format."""
    dialect = buffer.properties.get("dialect", "standard")
    role = _role(buffer.queue, dialect, buffer.features)
    readable, writable = buffer.readable, buffer.writable
    if role in (Role.INFLATE, Role.DEFLATE):
        return bounded(_message(dialect, readable))
    if role is Role.STATS:
        return bounded(_statistics(readable))
    if role is Role.MISC:
        return bounded([*_request(writable, dialect), *_message(dialect, readable)])
    if role is Role.FREE_PAGE_HINT:
        return bounded([*_command_id(readable), *_pages("hinted memory", writable, _HINTS)])
    if role is Role.REPORTING:
        return bounded(_pages("reported memory", writable, _REPORTS))
    return []


def _role(queue: str, dialect: str, features: int) -> Role | None:
    try:
        roles = by_name(dialect).roles(features)
    except (KeyError, ValueError):
        return None
    number = queue.removeprefix("queue ")
    if queue in (Role.INFLATE, Role.DEFLATE):
        return Role(queue)
    return roles.get(int(number)) if number.isdecimal() and len(number) < 3 else None


def _message(dialect: str, data: bytes) -> Iterator[Described]:
    """Yield the fields of a request on the inflate or deflate queue, or of a response."""
    if not data:
        return
    if dialect == "standard":
        yield from _page_frames(data)
    elif dialect == "bitmap":
        yield from _bitmap(data)
    else:
        yield from _records(dialect, data)


def _page_frames(data: bytes) -> Iterator[Described]:
    whole = len(data) // PFN_BYTES * PFN_BYTES
    pfns = struct.iter_unpack("<I", data[:whole])
    for index, (pfn,) in enumerate(islice(pfns, _SHOWN_PAGES)):
        value = f"page frame {pfn:#x}, at {pfn * PAGE_BYTES:#x}"
        yield Described("readable", PFN_BYTES * index, PFN_BYTES, f"pfn {index}", value, _PAGES)
    shown = PFN_BYTES * _SHOWN_PAGES
    if whole > shown:
        count = (whole - shown) // PFN_BYTES
        yield Described("readable", shown, whole - shown, "pfns", f"{count} further pages", _PAGES)
    if whole < len(data):
        yield Described("readable", whole, len(data) - whole, "rest", "no whole pfn", _PAGES)


def _bitmap(data: bytes) -> Iterator[Described]:
    fields = (
        ("cmd", 2, "{}"),
        ("page_shift", 2, "{}"),
        ("flag", 2, "{}"),
        ("reserved", 2, "{}"),
        ("req_id", 8, "{}"),
        ("start_pfn", 8, "{:#x}"),
        ("bmap_len", 8, "{} bytes"),
    )
    yield from unpacked("readable", data, bitmap.HEADER, fields, _BITMAP)
    bits = data[bitmap.HEADER.size :]
    if bits:
        header = bitmap.read_header(data)
        count = int.from_bytes(bits, "little").bit_count()
        value = f"{count} of {8 * len(bits)} pages from {header.start_pfn:#x} on"
        yield Described("readable", bitmap.HEADER.size, len(bits), "bitmap", value, _BITMAP)


def _records(dialect: str, data: bytes) -> Iterator[Described]:
    clause = _RECORDS[dialect]
    if len(data) < records.HEADER.size:
        yield Described("readable", 0, len(data), "header", f"only {len(data)} bytes", clause)
        return
    header = records.read_header(data)
    yield Described("readable", 0, 1, "cmd", str(header.cmd), clause)
    yield Described("readable", 1, 1, "flag", str(header.flag), clause)
    yield Described("readable", 2, 2, "id", str(header.id), clause)
    yield Described("readable", 4, 4, "data_len", f"{header.data_len} bytes", clause)
    whole = len(data[records.HEADER.size :]) // records.RECORD_BYTES * records.RECORD_BYTES
    if whole:
        payload = memoryview(data)[records.HEADER.size : records.HEADER.size + whole]
        decode = {"hybrid": PageRuns.from_hybrid_records, "ranges": PageRuns.from_range_records}
        try:
            value = _runs_text(decode[dialect](payload))
        except (ValueError, OverflowError) as error:
            value = f"cannot be decoded: {error}"
        yield Described("readable", records.HEADER.size, whole, "records", value, clause)


def _runs_text(runs: PageRuns) -> str:
    shown = ", ".join(f"{start:#x} + {count}" for start, count in islice(runs, _SHOWN_RUNS))
    more = ", ..." if len(runs) > _SHOWN_RUNS else ""
    return f"{runs.pages} pages, {len(runs)} ranges: {shown}{more}"


def _statistics(data: bytes) -> Iterator[Described]:
    whole = len(data) // _STATISTIC.size * _STATISTIC.size
    for index, (tag, value) in enumerate(_STATISTIC.iter_unpack(data[:whole])):
        known = STATISTICS[tag] if tag < len(STATISTICS) else None
        name = known.name if known else f"tag {tag}"
        text = f"{value} bytes" if known and known.is_bytes else str(value)
        yield Described("readable", _STATISTIC.size * index, _STATISTIC.size, name, text, _STATS)


def _request(data: bytes, dialect: str) -> Iterator[Described]:
    """Yield the fields of the host's request, which the device writes."""
    if len(data) < REQUEST.size:
        return
    clause = _BITMAP if dialect == "bitmap" else _RECORDS.get(dialect, _BITMAP)
    command, request_id = REQUEST.unpack_from(data)
    known = command in MiscCommand._value2member_map_
    name = MiscCommand(command).name if known else f"unknown, {command}"
    yield Described("writable", 0, 2, "cmd", name, clause)
    yield Described("writable", 8, 8, "param", f"request {request_id}", clause)


def _command_id(data: bytes) -> Iterator[Described]:
    if len(data) >= COMMAND_ID.size:
        (command,) = COMMAND_ID.unpack_from(data)
        value = {STOP: "STOP", DONE: "DONE"}.get(command, f"round {command}")
        yield Described("readable", 0, COMMAND_ID.size, "command id", value, _HINTS)


def _pages(name: str, data: bytes, clause: str) -> Iterator[Described]:
    if data:
        value = "the pages of the guest that the buffer consists of"
        yield Described("writable", 0, len(data), name, value, clause)
