# SPDX-License-Identifier: Apache-2.0
"""Calls that are made before the event loop exists."""

from __future__ import annotations

import asyncio

import pytest

from pyvmm.cli.late_loop import LateLoop


def test_calls_before_the_loop_are_made_in_order_before_later_ones() -> None:
    late = LateLoop()
    calls: list[object] = []
    late.call_soon_threadsafe(calls.append, 1)
    late.call_soon_threadsafe(calls.append, 2)

    async def main() -> None:
        late.attach(asyncio.get_running_loop())
        late.call_soon_threadsafe(calls.append, 3)
        assert calls == []
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(main())
    assert calls == [1, 2, 3]


def test_a_closed_loop_refuses_calls() -> None:
    late = LateLoop()

    async def main() -> None:
        late.attach(asyncio.get_running_loop())

    asyncio.run(main())
    with pytest.raises(RuntimeError):
        late.call_soon_threadsafe(print)
