# SPDX-License-Identifier: Apache-2.0
"""The diagrams and tables of the protocol references agree with the code."""

from __future__ import annotations

import re
import struct
from enum import IntEnum

import pytest

from devices.balloon import bitmap, dialects, features, hinting, misc
from devices.balloon.dialects import BITMAP, HYBRID, RANGES, STANDARD
from devices.testing import driver_queue
from devices.testing.driver_queue import DriverQueue
from devices.testing.ram import guest_memory
from devices.virtio import pci_transport
from devices.virtio.device import BUFFERS_PER_CALL, BYTES_PER_CALL
from devices.virtio.status import Status
from pyvmm_docs import layouts
from pyvmm_docs.bit_layout import Field, parse
from pyvmm_docs.values import Value, ValuesError, values_of
from pyvmm_native.runs import PageRuns
from tests.project.sources import ROOT

PAGES = ROOT / "docs" / "reference" / "protocols"


def text_of(page: str) -> str:
    return (PAGES / f"{page}.md").read_text()


def diagram(page: str, title: str) -> dict[str, Field]:
    """Return the fields of a diagram whose layout is written on the page, by name."""
    match = re.search(
        r"```\{bit-layout\} " + re.escape(title) + r".*?\n(.*?)```", text_of(page), re.DOTALL
    )
    assert match, title
    lines = [line for line in match[1].splitlines() if not line.startswith(":")]
    return {field.name: field for field in parse(lines)}


def bits(page: str, title: str) -> dict[str, int]:
    return {name: 1 << int(field.offset) for name, field in diagram(page, title).items()}


def number(queue: DriverQueue, base_gpa: int, field: Field) -> int:
    """Return the value of a field in guest memory; n is the Queue Size in symbolic offsets."""
    assert field.width is not None
    offset = field.offset
    if isinstance(offset, str):
        fixed, per_entry = re.fullmatch(r"(\d+)\+(\d+)n", offset).groups()  # type: ignore[union-attr]
        offset = int(fixed) + int(per_entry) * queue.size
    return int.from_bytes(queue.memory.read(base_gpa + offset, field.width), "little")


@pytest.fixture
def queue() -> DriverQueue:
    """Return a queue with EVENT_IDX through which one buffer of two pieces has gone."""
    queue = DriverQueue(guest_memory(1 << 20), 8, event_idx=True, start_index=3)
    device = queue.device_queue()
    queue.add(readable=[b"request"], writable=[16])
    chain = device.pop(4096)
    assert chain is not None
    chain.write(b"response")
    device.push(chain, 8)
    device.enable_notifications()
    return queue


def test_the_diagram_of_a_descriptor_is_what_the_driver_writes(queue: DriverQueue) -> None:
    fields = diagram("virtqueues", "Descriptor")
    first = {name: number(queue, queue.desc_gpa, each) for name, each in fields.items()}
    assert queue.memory.read(first["addr"], first["len"]) == b"request"
    assert first["flags"] == bits("virtqueues", "Flags of a descriptor")["NEXT"]
    second = {
        name: number(queue, queue.desc_gpa + 16 * first["next"], each)
        for name, each in fields.items()
    }
    assert second["len"] == 16
    assert second["flags"] == bits("virtqueues", "Flags of a descriptor")["WRITE"]


def test_the_flags_of_a_descriptor_are_those_of_the_driver() -> None:
    assert bits("virtqueues", "Flags of a descriptor") == {
        "NEXT": driver_queue.NEXT,
        "WRITE": driver_queue.WRITE,
        "INDIRECT": driver_queue.INDIRECT,
    }


def test_the_diagrams_of_the_rings_are_what_both_sides_write(queue: DriverQueue) -> None:
    available = diagram("virtqueues", "Available ring")
    used = diagram("virtqueues", "Used ring")
    element = diagram("virtqueues", "Element of the used ring")
    queue.set_used_event(5)
    assert number(queue, queue.avail_gpa, available["idx"]) == 4
    assert number(queue, queue.avail_gpa, available["used_event"]) == 5
    assert number(queue, queue.used_gpa, used["idx"]) == 4
    assert number(queue, queue.used_gpa, used["avail_event"]) == 4
    slot_gpa = queue.used_gpa + int(used["ring[n]"].offset) + 8 * 3
    assert number(queue, slot_gpa, element["id"]) == 0
    assert number(queue, slot_gpa, element["len"]) == 8


def test_the_diagram_of_a_capability_is_what_the_device_shows() -> None:
    function = layouts.balloon_board().function
    fields = diagram("virtqueues", "Virtio capability")
    (start,) = (
        offset
        for offset, _, cfg_type in layouts.capabilities(function)
        if cfg_type == pci_transport.CAP_NOTIFY_CFG
    )
    values = {
        name: function.config_read(start + int(each.offset), each.width or 0)
        for name, each in fields.items()
    }
    assert values["cap_vndr"] == pci_transport.CAP_ID_VENDOR
    assert values["cap_len"] == sum(each.width or 0 for each in fields.values()) == 20
    assert values["cfg_type"] == pci_transport.CAP_NOTIFY_CFG
    assert values["bar"] == pci_transport.VIRTIO_BAR
    assert values["offset"] == pci_transport.NOTIFY_OFFSET
    assert values["notify_off_multiplier"] == pci_transport.NOTIFY_MULTIPLIER


def test_the_bits_of_the_device_status_are_those_of_the_code() -> None:
    assert bits("virtqueues", "Device status") == {
        status.name: status.value for status in Status if status
    }


@pytest.mark.parametrize("layout", ["capability_list", "virtio_bar", "common_config"])
def test_layouts_of_devices_are_in_order_and_do_not_overlap(layout: str) -> None:
    fields = getattr(layouts, layout)()
    ends = [field.offset + field.width for field in fields]
    assert all(end <= field.offset for end, field in zip(ends, fields[1:], strict=False))
    assert len(fields) > 3


def test_numbers_in_the_text_are_those_of_the_code() -> None:
    standard, bitmap_page, rings = (text_of(p) for p in ("standard", "bitmap", "virtqueues"))
    assert f"{dialects.MAX_PFNS:,} numbers" in standard
    assert f"more than {hinting.MAX_RUNS:,} runs" in standard
    assert f"at most {misc.MAX_MESSAGES:,}" in bitmap_page
    assert f"`page_shift` below {bitmap.PAGE_SHIFT} or above {bitmap.MAX_PAGE_SHIFT}" in bitmap_page
    assert f"{BUFFERS_PER_CALL} buffers or {BYTES_PER_CALL >> 10} KiB" in rings
    notify = f"BAR {pci_transport.VIRTIO_BAR} + {pci_transport.NOTIFY_OFFSET:#x} + "
    assert f"{notify}{pci_transport.NOTIFY_MULTIPLIER} \N{MULTIPLICATION SIGN} N" in rings
    assert f"pending bits are at\n{pci_transport.MSIX_PBA_OFFSET:#x}" in rings


def record_of(title: str, **values: int) -> int:
    """Return a record of the hybrid or ranges dialect as its diagram lays it out."""
    fields = diagram("records", title)
    assert sum(field.width or 0 for field in fields.values()) == 64
    return sum(value << int(fields[name].offset) for name, value in values.items())


def test_the_diagrams_of_records_are_what_the_device_decodes() -> None:
    title = "Block, or the first word of a bitmap"
    block = record_of(title, start_pfn=(1 << 52) - 512, page_shift=21, bmap_len=0)
    words = [record_of(title, start_pfn=3, page_shift=13, bmap_len=8), 0b101, block]
    runs = PageRuns.from_hybrid_records(b"".join(word.to_bytes(8, "little") for word in words))
    assert list(runs) == [(3, 2), (7, 2), ((1 << 52) - 512, 512)]
    word = record_of("Range", pfn=(1 << 52) - 4095, n=4095)
    assert list(PageRuns.from_range_records(word.to_bytes(8, "little"))) == [
        ((1 << 52) - 4095, 4095)
    ]


def test_the_example_of_hybrid_records_names_its_pages() -> None:
    words = re.findall(r"^0x([0-9a-f]{16})  ", text_of("records"), re.MULTILINE)
    runs = PageRuns.from_hybrid_records(b"".join(bytes.fromhex(each)[::-1] for each in words))
    assert list(runs) == [(5, 1), (7, 1), (64, 1024)]


@pytest.mark.parametrize(
    ("page", "dialect"),
    [("standard", STANDARD), ("bitmap", BITMAP), ("records", HYBRID), ("records", RANGES)],
)
def test_the_page_says_which_features_are_offered(page: str, dialect: dialects.Dialect) -> None:
    sets: features.Features = dialect.features
    for bit, name in sets.names.items():
        (line,) = {each for each in text_of(page).splitlines() if each.startswith(f"{name}: ")}
        if bit & sets.fixed:
            assert "always offered" in line
        else:
            assert line.endswith("; offered" if bit & sets.default else "; on request")


@pytest.mark.parametrize("name", ["STANDARD", "BITMAP", "HYBRID", "RANGES"])
def test_the_dialects_are_compared_by_their_feature_bits(name: str) -> None:
    column = 2 + ["STANDARD", "BITMAP", "HYBRID", "RANGES"].index(name)
    rows = [
        line.split("|")
        for line in text_of("index").splitlines()
        if re.match(r"\| \**\d+\**+ \|", line)
    ]
    table = {int(row[1].strip(" *")): row[column].strip(" *") for row in rows}
    names = getattr(dialects, name).features.names
    assert {1 << bit: text for bit, text in table.items() if text != "none"} == names


class Colour(IntEnum):
    """An enumeration for `values_of`."""

    RED = 1
    GREEN = 2


def computed() -> list[Value]:
    """Return values for `values_of`."""
    return [Value(7, "seven", "from code"), Value(8, "eight")]


def test_values_are_read_from_enumerations_functions_and_modules() -> None:
    assert values_of(f"{__name__}:Colour", {"GREEN": "go", "RED": "stop"}) == [
        Value(1, "RED", "stop"),
        Value(2, "GREEN", "go"),
    ]
    assert values_of(f"{__name__}:computed", {"eight": "more"}) == [
        Value(7, "seven", "from code"),
        Value(8, "eight", "more"),
    ]
    assert values_of("devices.balloon.bitmap", {"PAGE_SHIFT": "x"}) == [
        Value(12, "PAGE_SHIFT", "x")
    ]


@pytest.mark.parametrize(
    ("source", "meanings", "fault"),
    [
        (f"{__name__}:Colour", {"RED": "stop"}, "GREEN of .* has no meaning"),
        (f"{__name__}:Colour", {"RED": "", "GREEN": "", "BLUE": ""}, "has no BLUE"),
        (f"{__name__}:computed", {"nine": ""}, "has no nine"),
        ("devices.balloon.bitmap", {"NO_SUCH": ""}, "has no NO_SUCH"),
    ],
)
def test_values_that_the_code_does_not_have_are_refused(
    source: str, meanings: dict[str, str], fault: str
) -> None:
    with pytest.raises(ValuesError, match=fault):
        values_of(source, meanings)


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("v4 and v5: a record", {"start_pfn": 5 << 6, "page_shift": 12, "bmap_len": 8}),
        ("v4 and v5: a record", {"start_pfn": 77, "page_shift": 21, "bmap_len": 0}),
        ("v6: a range", {"count": 3, "pfn": 9}),
    ],
)
def test_the_history_shows_records_as_the_device_decodes_them(
    title: str, words: dict[str, int]
) -> None:
    fields = diagram("history", title)
    assert fields.keys() == words.keys()
    record = sum(value << int(fields[name].offset) for name, value in words.items())
    if "count" in words:
        pages = PageRuns.from_range_records(struct.pack("<Q", record))
        assert list(pages) == [(words["pfn"], words["count"])]
    elif words["bmap_len"]:
        pages = PageRuns.from_hybrid_records(struct.pack("<2Q", record, 1 << 7))
        assert list(pages) == [(words["start_pfn"] + 7, 1)]
    else:
        pages = PageRuns.from_hybrid_records(struct.pack("<Q", record))
        assert list(pages) == [(words["start_pfn"], 1 << words["page_shift"] - 12)]


def test_the_history_shows_the_header_of_records_as_the_device_reads_it() -> None:
    shown = diagram("history", "v4 to v6: struct virtio_balloon_resp_hdr")
    read = {field.name: field[:2] for field in layouts.record_header()}
    assert {name: field[:2] for name, field in shown.items()} == read
