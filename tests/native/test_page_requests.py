# SPDX-License-Identifier: Apache-2.0
"""Requests that name pages, popped and decoded together, against the reference decoder."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.balloon.dialects import NAMES
from devices.testing.balloon.requests import (
    bitmap_request,
    hybrid_records,
    pfn_array,
    range_records,
    record_request,
)
from devices.testing.driver_queue import DriverQueue, Used
from devices.testing.ram import guest_memory
from pyvmm_native.page_requests import PageRequestReader, PageRequests, decode
from pyvmm_native.ring import Chain, RingError, SplitQueue
from pyvmm_native.runs import PageRuns
from tests.fuzz import page_oracle

RAM_PAGES = 4096
RAM = PageRuns([(0, 1000), (1100, RAM_PAGES - 1100)])
NAMED = page_oracle.pages_of_regions(
    (start * 4096, count * 4096) for start, count in [(0, 1000), (1100, RAM_PAGES - 1100)]
)
LIMIT = 1 << 16


def request_for(name: str, pfns: list[int]) -> bytes:
    """Return a request in the format `name`, valid if `pfns` are."""
    match name:
        case "bitmap":
            return b"".join(bitmap_request(pfns))
        case "hybrid":
            return b"".join(record_request(hybrid_records(pfns)))
        case "ranges":
            return b"".join(record_request(range_records(pfns)))
        case _:
            return pfn_array(pfns)


def queue_with(*messages: bytes, size: int = 128) -> tuple[DriverQueue, SplitQueue]:
    driver = DriverQueue(guest_memory(RAM_PAGES * 4096), size, indirect=True)
    for message in messages:
        driver.add([message[: len(message) // 2], message[len(message) // 2 :]], indirect=True)
    return driver, driver.device_queue()


pfn_lists = st.lists(st.integers(0, 1200), min_size=1, max_size=6, unique=True).map(sorted)


@st.composite
def messages(draw: st.DrawFn, name: str) -> bytes:
    message = request_for(name, draw(pfn_lists))
    if draw(st.integers(0, 3)) == 0:
        changed = bytearray(message)
        changed[draw(st.integers(0, len(message) - 1))] ^= 1 << draw(st.integers(0, 7))
        message = bytes(changed)
    cut = draw(st.integers(0, 9)) == 0
    return message[: draw(st.integers(0, len(message)))] if cut else message


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_batches_are_the_valid_requests_in_the_order_of_the_ring(
    name: str, data: st.DataObject
) -> None:
    sent = data.draw(st.lists(messages(name), max_size=20))
    driver, queue = queue_with(*sent)
    reader = PageRequestReader(name, RAM)
    left = list(sent)
    while (taken := reader.pop(queue, LIMIT)) is not None:
        if isinstance(taken, Chain):
            message = left.pop(0)
            assert page_oracle.NAMED_BY[name](message, NAMED) is None
            assert taken.readable == message
            queue.push(taken)
            continue
        batch, left = left[: taken.count], left[taken.count :]
        assert taken.messages == tuple(batch)
        pages = [page_oracle.NAMED_BY[name](message, NAMED) for message in batch]
        assert set().union(*({-1} if page is None else page for page in pages)) == {
            pfn for start, count in taken.runs for pfn in range(start, start + count)
        }
        assert taken.pages == sum(len(page or ()) for page in pages)
        assert taken.runs.pages == len(set().union(*(page or () for page in pages)))
        assert taken.readable_bytes == sum(map(len, batch))
        assert not left or page_oracle.NAMED_BY[name](left[0], NAMED) is None
        taken.push()
    assert not left
    assert [used.length for used in driver.take_used()] == [0] * len(sent)


@pytest.mark.parametrize("name", ["bitmap", "hybrid"])
def test_a_request_may_name_no_page(name: str) -> None:
    empty = bytearray(request_for(name, [0]))
    empty[-8:] = bytes(8)
    _, queue = queue_with(bytes(empty), request_for(name, [7]))
    taken = PageRequestReader(name, RAM).pop(queue, LIMIT)
    assert isinstance(taken, PageRequests)
    assert (taken.count, taken.pages, taken.runs) == (2, 1, PageRuns([(7, 1)]))


@pytest.mark.parametrize("name", NAMES)
def test_a_decoder_refuses_what_the_reference_refuses(name: str) -> None:
    assert decode(name, request_for(name, [5, 6, 99])) == PageRuns([(5, 2), (99, 1)])
    for length in range(len(request_for(name, [5]))):
        shorter = request_for(name, [5])[:length]
        assert page_oracle.NAMED_BY[name](shorter, NAMED) is None
        with pytest.raises(ValueError, match=r"\d"):
            decode(name, shorter)


def test_buffers_of_a_batch_are_returned_together_in_order() -> None:
    driver, queue = queue_with(*(pfn_array([pfn]) for pfn in (9, 3, 4)))
    taken = PageRequestReader("standard", RAM).pop(queue, LIMIT)
    assert isinstance(taken, PageRequests)
    assert driver.take_used() == []
    taken.push()
    assert driver.take_used() == [Used(head, 0, b"") for head in (0, 1, 2)]
    assert taken.runs == PageRuns([(3, 2), (9, 1)])


def test_two_requests_may_name_one_page() -> None:
    _, queue = queue_with(pfn_array([7, 8]), pfn_array([8]))
    taken = PageRequestReader("standard", RAM).pop(queue, LIMIT)
    assert isinstance(taken, PageRequests)
    assert (taken.runs, taken.pages) == (PageRuns([(7, 2)]), 3)


@pytest.mark.parametrize(
    ("runs", "count"), [(1, 64), (500, 9), (256, 16)], ids=["requests", "runs", "as Linux"]
)
def test_a_batch_is_bounded(runs: int, count: int) -> None:
    """It ends with the request that makes it 4096 runs."""
    _, queue = queue_with(*[pfn_array(range(0, 2 * runs, 2))] * 100)
    taken = PageRequestReader("standard", PageRuns([(0, RAM_PAGES)])).pop(queue, LIMIT)
    assert isinstance(taken, PageRequests)
    assert taken.count == count


def test_a_batch_is_bounded_by_its_bytes() -> None:
    request = b"".join(bitmap_request([5], bmap_len=8)) + bytes(24 * 1024)
    _, queue = queue_with(*[request] * 10)
    taken = PageRequestReader("bitmap", RAM).pop(queue, LIMIT)
    assert isinstance(taken, PageRequests)
    assert taken.count == 3


@pytest.mark.parametrize(("of_reader", "of_call"), [(1, 64), (64, 1)])
def test_a_batch_may_be_one_request(of_reader: int, of_call: int) -> None:
    _, queue = queue_with(*(pfn_array([pfn]) for pfn in range(3)))
    reader = PageRequestReader("standard", RAM, of_reader)
    batches = [reader.pop(queue, LIMIT, of_call) for _ in range(4)]
    assert [batch and batch.runs for batch in batches if not isinstance(batch, Chain)] == [
        *(PageRuns([(pfn, 1)]) for pfn in range(3)),
        None,
    ]


def test_a_buffer_with_a_writable_part_is_popped_alone() -> None:
    driver, queue = queue_with(pfn_array([1]))
    driver.add([pfn_array([2])], [16])
    reader = PageRequestReader("standard", RAM)
    first, second = reader.pop(queue, LIMIT), reader.pop(queue, LIMIT)
    assert isinstance(first, PageRequests)
    assert isinstance(second, Chain)
    assert (second.readable, second.writable_bytes) == (pfn_array([2]), 16)


def test_a_request_that_is_too_long_is_popped_without_its_bytes() -> None:
    _, queue = queue_with(pfn_array(range(100)))
    taken = PageRequestReader("standard", RAM).pop(queue, 399)
    assert isinstance(taken, Chain)
    assert (taken.readable, taken.readable_bytes) == (b"", 400)


def test_a_malformed_chain_is_reported_once_the_requests_before_it_are_served() -> None:
    driver, queue = queue_with(pfn_array([1]), pfn_array([2]))
    driver.set_desc(1, 1 << 50, 4)
    reader = PageRequestReader("standard", RAM)
    assert isinstance(first := reader.pop(queue, LIMIT), PageRequests)
    assert first.count == 1
    before = queue.next_avail
    with pytest.raises(RingError, match="descriptor 1: element outside guest RAM"):
        reader.pop(queue, LIMIT)
    assert queue.next_avail == before


@pytest.mark.parametrize("event_idx", [False, True])
def test_the_driver_notifies_again_once_all_its_requests_are_returned(event_idx: bool) -> None:
    driver = DriverQueue(guest_memory(RAM_PAGES * 4096), 16, event_idx=event_idx)
    queue = driver.device_queue()
    for pfn in range(3):
        driver.add([pfn_array([pfn])])
    queue.disable_notifications()

    def notified_from() -> int:
        """Return the index of the first buffer of which the driver notifies the device."""
        return driver.avail_event if event_idx else 99 if driver.used_flags else driver.used_idx

    before = notified_from()
    reader = PageRequestReader("standard", RAM)
    two, third = reader.pop(queue, LIMIT, 2), reader.pop(queue, LIMIT, 2)
    assert isinstance(two, PageRequests)
    assert isinstance(third, PageRequests)
    assert two.push(), "a third request waited"
    assert notified_from() == before
    assert not third.push()
    assert notified_from() == 3
    driver.add([pfn_array([4])])
    last = reader.pop(queue, LIMIT)
    assert isinstance(last, PageRequests)
    driver.add([pfn_array([5])])
    assert last.push(), "a request came while the one before was served"


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="morse"):
        PageRequestReader("morse", RAM)
    for number in (0, 65):
        with pytest.raises(ValueError, match="batches of"):
            PageRequestReader("standard", RAM, number)
    with pytest.raises(TypeError, match="only PageRequestReader"):
        PageRequests()
