# SPDX-License-Identifier: Apache-2.0
"""The benchmark of requests: both devices serve the same driver, by both paths."""

from __future__ import annotations

import pytest

pytest.importorskip("bench")

from bench import requests
from bench.measure import Plan
from bench.request_cases import C_LOOP, PYVMM
from bench.targets import TARGETS
from pyvmm.progress.reporter import Silent

BATCHES = 5


@pytest.mark.parametrize("make_queue", [requests.PyvmmQueue, requests.CQueue])
def test_every_buffer_is_returned_and_every_page_discarded(
    make_queue: type[requests.PyvmmQueue | requests.CQueue],
) -> None:
    queue = make_queue()
    pages = [requests.page_gpa(slot) for slot in range(BATCHES)]
    assert all(len(queue.through_loop(buffers, BATCHES)) == BATCHES for buffers in (64, 8))
    assert queue.served == 72 * BATCHES
    assert all(len(queue.directly(buffers, BATCHES)) == BATCHES for buffers in (1, 64))
    assert queue.served == 137 * BATCHES
    assert not any(queue.memory.read(gpa, 1)[0] for gpa in pages)
    queue.close()


def test_the_latency_is_compared_for_each_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "QUICK_BATCHES", BATCHES)
    cases = {case.name: case for case in requests.measure(Plan(True, Silent()))}
    assert len(cases) == 12
    assert all(case.median(C_LOOP) > 0 and case.median(PYVMM) > 0 for case in cases.values())
    targets = [target for target in TARGETS if target.bench == "requests"]
    assert len(targets) == 2
    assert all(
        {target.contender, target.against} == set(cases[target.case].rounds) for target in targets
    )
