# SPDX-License-Identifier: Apache-2.0
"""The page's decoder and store find the same events as Python's decoder, bit for bit."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page

from bench.busy_queue import busy_queue
from pyvmm.trace.stream import events_of
from pyvmm_native.events import Batch
from tests.scope.page_host import PageHost
from tests.scope.recordings import (
    board_batches,
    chunks,
    dropping_batch,
    hostile_batches,
    random_batches,
)

Host = Callable[..., PageHost]
ADD = """async ([data, limit]) => {
  const store = new window.store.EventStore(limit);
  const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0));
  await window.source.addChunks(store, new Blob([bytes]).stream().getReader());
  window.events = store;
}"""
ALL = """() => {
  const found = [];
  for (let i = events.first; i < events.end; i++) {
    const { seq, timeNs, kind, device, queue, fields } = events.event(i);
    const isText = (value) => typeof value === "string";
    const texts = Object.entries(fields).map(([name, value]) =>
      [name, isText(value) ? value : BigInt(value).toString(), isText(value)]);
    const ns = String(events.originNs + BigInt(timeNs));
    found.push([seq, ns, kind, device, queue, texts]);
  }
  return found;
}"""


def load(page_host: Host, batches: list[Batch], limit: int = 10_000_000) -> Page:
    """Return a page whose variable `events` is a store with the batches."""
    page = page_host().modules("store", "source")
    page.evaluate(ADD, [base64.b64encode(chunks(batches)).decode(), limit])
    return page


def expected(batches: list[Batch]) -> list[list[Any]]:
    return [
        [
            event.seq,
            str(event.time_ns),
            event.kind,
            event.device,
            event.queue,
            [[name, str(value), isinstance(value, str)] for name, value in event.fields.items()],
        ]
        for batch in batches
        for event in events_of(batch)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_random_events_are_those_of_pythons_decoder(page_host: Host, seed: int) -> None:
    batches = random_batches(seed, 500)
    assert load(page_host, batches).evaluate(ALL) == expected(batches)


@pytest.mark.parametrize("make", [board_batches, hostile_batches])
def test_events_of_a_device_are_those_of_pythons_decoder(
    page_host: Host, make: Callable[[], list[Batch]]
) -> None:
    batches = make()
    assert load(page_host, batches).evaluate(ALL) == expected(batches)


def test_lost_events_are_an_event_and_counted(page_host: Host) -> None:
    batch = dropping_batch()
    page = load(page_host, [batch])
    assert page.evaluate(ALL) == expected([batch])
    assert page.evaluate("() => events.dropped") == batch.dropped > 0


def test_the_oldest_events_are_forgotten_beyond_the_limit(page_host: Host) -> None:
    page = load(page_host, list(busy_queue(60_000)), limit=25_000)
    first, end = page.evaluate("() => [events.first, events.end]")
    assert (first, end) == (30_000, 60_000)
    assert page.evaluate("() => events.event(events.first).seq") == first
    assert page.evaluate("() => events.indexAt(0)") == first


def test_find_and_index_agree_with_a_search_of_all_events(page_host: Host) -> None:
    batches = random_batches(9, 400)
    kinds = [event[2] for event in expected(batches)]
    page = load(page_host, batches)
    for start in range(0, len(kinds), 37):
        after = [i for i in range(start, len(kinds)) if kinds[i] == "status"]
        before = [i for i in range(start + 1) if kinds[i] == "status"]
        found = page.evaluate(
            "(i) => [events.find('status', i, 1), events.find('status', i, -1)]", start
        )
        assert found == [after[0] if after else -1, before[-1] if before else -1]
    assert page.evaluate("() => events.indexAt(events.lastNs + 1)") == len(kinds)


@pytest.mark.parametrize("at", [0, 9, 20, 60, 70])
def test_a_damaged_chunk_is_refused(page_host: Host, at: int) -> None:
    data = bytearray(chunks(board_batches()))
    data[at] ^= 0x40
    page = page_host().modules("store", "source")
    message = page.evaluate(
        f"(data) => ({ADD})([data, 100]).then(() => 'added', (error) => error.constructor.name)",
        base64.b64encode(data).decode(),
    )
    assert message == "DecodeError"


def test_densities_are_those_of_counting_each_event(page_host: Host) -> None:
    page = load(page_host, list(busy_queue(50_000)))
    page = _with_density(page)
    for window in ([0.0, 1.0], [0.1, 0.3], [0.5, 0.5001]):
        assert page.evaluate(COMPARE_DENSITY, window) == []


def _with_density(page: Page) -> Page:
    for name in ("lanes", "density"):
        page.evaluate(f"async () => {{ window.{name} = await import('/TOKEN/page/{name}.js'); }}")
    return page


COMPARE_DENSITY = """([low, high]) => {
  const rows = new lanes.Lanes(events.types, []), counter = new density.Density(events, rows);
  counter.update();
  const from = low * events.lastNs, to = high * events.lastNs + 1, width = 300;
  const counts = counter.counts(from, to, width), plain = new Uint32Array(counts.length);
  for (let i = events.indexAt(from); i < events.indexAt(to); i++) {
    const x = Math.min(Math.floor((events.timeAt(i) - from) * (width / (to - from))), width - 1);
    plain[rows.ofType[events.typeAt(i).id] * width + x]++;
  }
  return [...plain.keys()].filter((i) => plain[i] !== counts[i]);
}"""


COMPARE_HISTORY = """(indexes) => {
  let followed = 0;
  class Follower {
    heads = [];
    apply({ kind, fields }) {
      followed++;
      this.heads = [...this.heads, `${kind} ${fields.head}`].slice(-3);
    }
    clone() {
      return Object.assign(new Follower(), { heads: [...this.heads] });
    }
  }
  const rules = { make: () => new Follower(), concerns: ({ kind }) => kind !== "inflate" };
  const history = new event_history.EventHistory(events, rules), counts = [];
  for (const index of indexes) {
    const before = followed, { heads } = history.at(index);
    counts.push(followed - before);
    const plain = new event_history.EventHistory(events, rules).at(index);
    if (String(plain.heads) !== String(heads)) throw new Error(`other heads at ${index}`);
    followed = 0;
  }
  return counts;
}"""


def test_a_history_goes_back_over_a_bounded_number_of_events(page_host: Host) -> None:
    page = load(page_host, list(busy_queue(100_000)))
    page.evaluate(
        "async () => { window.event_history = await import('/TOKEN/page/event_history.js'); }"
    )
    counts = page.evaluate(COMPARE_HISTORY, [99_999, 99_998, 99_000, 30_000, 3, 60_000])
    assert counts[0] == 80_000
    assert max(counts[1:3]) <= 20_000
    assert counts[4] == 3  # of four events, one is an inflate


GO_BACK_FROM_THE_END = """(indexes) => {
  let followed = 0;
  class Follower {
    apply() {
      followed++;
    }
    clone() {
      return this;
    }
  }
  const end = 4_000_000, store = {
    end, types: { list: [{}] }, event: () => null,
    columns: (from, to, visit) => visit(null, new Uint16Array(to - from), from),
  };
  return indexes.map((index) => {
    const history = new event_history.EventHistory(store, {
      make: () => new Follower(), concerns: () => true,
    });
    history.at(end - 1);
    followed = 0;
    history.at(index);
    return followed;
  });
}"""


def test_a_history_of_as_many_events_as_are_kept_has_copies_at_even_distances(
    page_host: Host,
) -> None:
    page = page_host().modules("event_history")
    counts = page.evaluate(GO_BACK_FROM_THE_END, [3_999_998, 3_000_000, 600_000, 90_000, 70_000])
    assert max(counts) <= 120_000
