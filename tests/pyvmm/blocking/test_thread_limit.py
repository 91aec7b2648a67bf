# SPDX-License-Identifier: Apache-2.0
"""A thread that the host refuses is one error, wherever one is started."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

import pytest

from pyvmm.blocking import loop_thread
from pyvmm.blocking.deadline import call_within
from pyvmm.blocking.in_thread import call_in_thread
from pyvmm.blocking.loop_thread import LoopThread
from pyvmm.blocking.started_call import StartedCall
from pyvmm.blocking.thread_limit import thread_limit_reported
from pyvmm.errors import ThreadNotStarted
from tests.project.sources import ROOT
from tests.pyvmm.blocking.refused_threads import refused_threads

STARTERS = {
    "call_within": lambda: call_within(1, "test", int),
    "LoopThread": lambda: LoopThread("test"),
    "StartedCall": lambda: StartedCall("test", int),
}


@pytest.mark.parametrize("start", STARTERS.values(), ids=STARTERS.keys())
def test_a_refused_thread_is_one_error(start: Callable[[], object]) -> None:
    with (
        refused_threads(),
        pytest.raises(ThreadNotStarted, match="start no more threads"),
    ):
        start()


def test_a_refused_call_of_a_coroutine_is_one_error() -> None:
    async def call() -> None:
        await call_in_thread("test", int)

    with refused_threads(), pytest.raises(ThreadNotStarted):
        asyncio.run(call())


def test_a_loop_that_cannot_be_created_for_another_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(main: object) -> None:
        raise MemoryError

    monkeypatch.setattr(loop_thread, "run_on_new_loop", fail)
    with pytest.raises(MemoryError):
        LoopThread("test")


def test_other_errors_keep_their_type() -> None:
    with pytest.raises(RuntimeError, match="another"), thread_limit_reported():
        raise RuntimeError("another")


def test_every_module_that_starts_threads_reports_the_limit() -> None:
    texts = {path: path.read_text() for path in ROOT.glob("pyvmm/**/*.py")}
    starting = [
        path for path, text in texts.items() if re.search(r"threading\.(Thread|Timer)\(", text)
    ]
    assert len(starting) > 10
    assert not [path for path in starting if "thread_limit_reported():" not in texts[path]]
