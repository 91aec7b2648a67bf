# SPDX-License-Identifier: Apache-2.0
"""The benchmark of encodings: its quantities, cases, tables and requests. No test measures."""

from __future__ import annotations

from functools import reduce

import pytest

pytest.importorskip("bench")

from bench.balloon_guests import DeviceCosts, ResizeCosts, Stopwatches
from bench.encoding_cases import (
    BITMAP,
    BLOCKS,
    BOOKKEEPING,
    FREE_MEMORY,
    RANGES,
    STANDARD,
    Cycle,
    EncodingCases,
    RateCases,
    quantities,
)
from bench.encoding_tables import encoding_tables
from bench.encodings import CONTENDERS, RATE_SIZE
from bench.fake_guest import ENCODERS, block_pieces, block_requests
from bench.fragmented_guest import last_counters, share_in_blocks
from bench.measure import TOTAL, Values
from bench.migratable_guests import QEMU
from bench.plots import _axis
from bench.results import new_result
from bench.targets import TARGETS
from devices.balloon import dialects
from devices.balloon.dialects import Dialect
from devices.testing.balloon.driver import BalloonDriver
from pyvmm_native.runs import PageRuns

DIALECTS = (dialects.STANDARD, dialects.BITMAP, dialects.HYBRID, dialects.RANGES)
COUNTERS = {
    "total_ns": 900_000,
    "alloc_ns": 100_000,
    "tell_ns": 500_000,
    "messages": 2,
    "pages": 100,
    "encoder_peak_bytes": 8192,
}


def costs(device: DeviceCosts | None) -> ResizeCosts:
    return ResizeCosts("inflate", 0.001, COUNTERS, device)


def of_pyvmm() -> ResizeCosts:
    return costs(DeviceCosts({"decoding": 0.0001, "discard": 0.0003}, 64))


def totals(found: dict[str, Values]) -> dict[str, float]:
    return {what: values[TOTAL] for what, values in found.items()}


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_decoding_is_measured_while_a_resize_runs(dialect: Dialect) -> None:
    driver = BalloonDriver(dialect).start()
    with Stopwatches().running(driver.board.balloon) as watches:
        driver.inflate([5])
        inflated = watches.seconds["decoding"]
        driver.deflate([5])
    deflated = watches.seconds["decoding"]
    driver.inflate([6])
    assert 0 < inflated < deflated == watches.seconds["decoding"]


def test_the_stages_of_a_resize_add_up_to_its_time() -> None:
    for each in (of_pyvmm(), costs(None)):
        stages = dict(each.stages())
        assert sum(stages.values()) - stages[TOTAL] == pytest.approx(stages[TOTAL])
        assert stages[BOOKKEEPING] == pytest.approx(0.0003)


def test_quantities_are_those_of_a_page() -> None:
    assert totals(quantities(of_pyvmm())) == pytest.approx(
        {
            "time": 10_000.0,
            "bytes on the queue": 0.64,
            "requests": 2,
            "driver": 4000.0,
            "device": 1000.0,
            "discard": 3000.0,
            "driver memory": 8.0,
        }
    )


def test_qemu_is_counted_as_sent_arrays_and_has_no_device_costs() -> None:
    found = totals(quantities(costs(None)))
    assert found["bytes on the queue"] == 4
    assert "device" not in found
    assert "discard" not in found


def cycle(ram: str, gib: float, seconds: float, bookkeeping: float, *, is_full: bool) -> Cycle:
    values = {TOTAL: seconds, BOOKKEEPING: bookkeeping}
    touch = 2.0 if is_full and ram == "touched" else 0.0
    return Cycle(
        ram=ram, gib=gib, is_full=is_full, inflate=values, deflate=values, touch_gib_s=touch
    )


def rates() -> RateCases:
    """Return rates of arrays, which move 1 GiB, and of two contenders, which move all 7."""
    cases = RateCases()
    for ram in ("untouched", "touched"):
        cases.add(STANDARD, [cycle(ram, 1.0, 4.0, 1.0, is_full=False)])
        cases.add(BITMAP, [cycle(ram, 7.0, 0.7, 0.4, is_full=True)] * 2)
        cases.add(BITMAP + BLOCKS, [cycle(ram, 7.0, 0.14, 0.02, is_full=True)] * 2)
    return cases


def test_rates_of_different_amounts_are_compared_but_not_their_seconds() -> None:
    by_name = {case.name: case for case in rates().cases}
    reclaim = by_name["reclaim, RAM touched"]
    assert reclaim.higher_is_better
    assert reclaim.ratio(BITMAP) == pytest.approx(40)
    assert by_name["inflate, RAM touched"].rounds.keys() == {BITMAP, BITMAP + BLOCKS}
    assert by_name["touch, RAM touched"].rounds[BITMAP] == [2.0, 2.0]


def test_the_targets_of_blocks_are_measured() -> None:
    result = new_result("encodings", "", False, rates().cases)
    ratios = [each.measured(result) for each in TARGETS if each.bench == "encodings"]
    assert ratios == pytest.approx([0.2, 0.05, 0.2, 0.05])


def test_the_tables_have_each_contender_and_compare_it_with_the_bitmap() -> None:
    encodings = EncodingCases(FREE_MEMORY)
    for name in CONTENDERS:
        found = quantities(costs(None) if name == QEMU else of_pyvmm())
        encodings.add(name, FREE_MEMORY[0], {"inflate": found, "deflate": found})
    cases = [*encodings.cases, *rates().cases]
    inflate, deflate, compared, gib_s, *stages = encoding_tables(
        new_result("encodings", "", False, cases)
    )
    assert inflate.title == "inflate, free memory whole"
    assert inflate.columns[1:4] == ("time, ns/page", "bytes on the queue, bytes/page", "requests")
    assert inflate.rows[0] == (QEMU, "10,000", "4", "2", "4,000", "", "", "8")
    assert len(inflate.rows) == len(deflate.rows) == len(CONTENDERS)
    first = "bytes on the queue: inflate, free memory whole"
    assert compared.rows[0][:3] == (first, "1.000", "1.000")
    assert gib_s.rows[1] == (BITMAP, "10 (40)", "10 (40)", "10 (40)", "10 (40)", "2 (1)")
    assert len(stages) == 2


def test_a_plot_says_which_way_is_better() -> None:
    by_name = {case.name: case for case in rates().cases}
    assert _axis(by_name["reclaim, RAM touched"]) == "GiB/s (higher is better)"
    assert _axis(by_name["inflate, RAM touched"]) == "seconds (lower is better)"


def test_each_dialect_is_measured_with_single_pages_and_records_with_blocks_too() -> None:
    setups = {(each.dialect, each.blocks) for each in CONTENDERS.values()}
    records = {each.name for each in DIALECTS} - {"standard"}
    assert setups == {("", False), ("standard", False)} | {
        (dialect, blocks) for dialect in records for blocks in (False, True)
    }
    assert CONTENDERS[STANDARD].rate_mib(RATE_SIZE) == CONTENDERS[QEMU].rate_mib(RATE_SIZE) == 512
    assert CONTENDERS[RANGES].rate_mib(RATE_SIZE) == 7168


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda each: each.name)
@pytest.mark.parametrize("run_pages", [0, 16, 1])
def test_the_requests_of_a_fake_guest_name_its_pages(dialect: Dialect, run_pages: int) -> None:
    step = 2 * run_pages
    runs = [(i, run_pages) for i in range(4096, 5120, step)] if run_pages else [(4096, 70_000)]
    pages = PageRuns(runs)
    named = PageRuns()
    for request in ENCODERS[dialect.name](pages):
        named = named.union(dialect.decode(b"".join(request)))
    assert list(named) == list(pages)


@pytest.mark.parametrize("step", [1, 2])
def test_the_requests_of_blocks_name_a_gib_at_most(step: int) -> None:
    pages = PageRuns((512 * block, 512) for block in range(500, 1600, step))
    requests, pieces = list(block_requests(pages)), list(block_pieces(pages))
    assert [dialects.BITMAP.decode(b"".join(request)) for request in requests] == pieces
    assert [piece.pages for piece in pieces[:-1]] == [512 * 512] * (len(pieces) - 1)
    assert reduce(PageRuns.union, pieces) == pages
    with pytest.raises(AssertionError):
        list(block_requests(PageRuns([(512, 511)])))


def test_the_share_of_free_memory_in_blocks_is_that_of_pages() -> None:
    lines = (
        "Node 0, zone      DMA      2      0      3      0      0\n"
        "Node 0, zone    DMA32      0      1      1      1      7\n"
    )
    assert share_in_blocks(lines, 16) == 7 * 16 / (2 + 12 + 2 + 4 + 8 + 112)


def test_counters_of_a_fragmented_guest_are_the_last_ones_with_the_highest_peak() -> None:
    lines = [
        "free 120",
        "inflate_pages:64 inflate_messages:1 encoder_peak_bytes:900",
        "inflate_pages:100 inflate_messages:3 encoder_peak_bytes:500",
        "deflate_pages:100 deflate_messages:1 encoder_peak_bytes:700",
    ]
    assert last_counters("inflate", lines) == {
        "pages": 100,
        "messages": 3,
        "encoder_peak_bytes": 900,
    }
    assert last_counters("deflate", lines)["encoder_peak_bytes"] == 700
