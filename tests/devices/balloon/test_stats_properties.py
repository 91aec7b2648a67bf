# SPDX-License-Identifier: Apache-2.0
"""Invariant: any bytes decode to the statistics that they encode, or raise `BadPayload`.

Nothing else is raised, and every valid report has each known statistic exactly once.
"""

from hypothesis import given
from hypothesis import strategies as st

from devices.balloon.stat_tags import STATISTICS
from devices.balloon.stats import StatsReport, decode
from devices.errors import BadPayload
from devices.testing.balloon.requests import stats_payload

tags = st.integers(0, 20) | st.integers(0, 0xFFFF)
entries = st.lists(st.tuples(tags, st.integers(0, 2**64 - 1)), max_size=40)


@given(entries)
def test_statistics_decode_as_sent(sent: list[tuple[int, int]]) -> None:
    values = decode(stats_payload(sent))
    assert values == dict(sent)
    report = StatsReport(values, 0)
    assert [*report.known] == [each.name for each in STATISTICS]
    named = dict(zip(range(len(STATISTICS)), report.known.values(), strict=True))
    present = {tag: value for tag, value in named.items() if value is not None}
    assert {**present, **report.unknown} == values
    assert present.keys().isdisjoint(report.unknown)


@given(st.binary(max_size=200))
def test_any_bytes_decode_to_a_report_or_raise_bad_payload(payload: bytes) -> None:
    try:
        values = decode(payload)
    except BadPayload:
        assert len(payload) % 10
    else:
        assert len(payload) % 10 == 0
        entries = (payload[at : at + 10] for at in range(0, len(payload), 10))
        last = {entry[:2]: entry for entry in entries}
        assert stats_payload(values.items()) == b"".join(last.values())
