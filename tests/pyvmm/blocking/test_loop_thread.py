# SPDX-License-Identifier: Apache-2.0
"""An event loop in a thread: results, errors, interrupted waits and its end."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from pyvmm.blocking.loop_thread import LoopThread


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    thread = LoopThread("test")
    yield thread
    thread.close()


async def double(number: int) -> int:
    await asyncio.sleep(0.001)
    if number < 0:
        raise ValueError("negative")
    return 2 * number


def test_results_and_errors_reach_every_calling_thread(loop: LoopThread) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda n: loop.call(double(n)), range(20))) == [*range(0, 40, 2)]
    with pytest.raises(ValueError, match="negative"):
        loop.call(double(-1))


def test_an_interrupted_wait_cancels_the_coroutine(loop: LoopThread) -> None:
    cancelled, begun = threading.Event(), threading.Event()

    async def wait() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    main = threading.get_ident()

    def interrupt() -> None:
        begun.wait()
        signal.pthread_kill(main, signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        loop.call(wait())
    interrupter.join()
    assert cancelled.wait(5)


def test_a_close_ends_calls_and_refuses_new_ones(loop: LoopThread) -> None:
    begun = threading.Event()

    async def wait() -> None:
        begun.set()
        await asyncio.sleep(60)

    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(loop.call, wait())
        begun.wait()
        loop.close()
        with pytest.raises(CancelledError):
            call.result(5)
    with pytest.raises(RuntimeError, match="has ended"):
        loop.call(double(1))
    loop.close()


def test_a_call_from_the_loop_itself_is_refused(loop: LoopThread) -> None:
    async def nested() -> int:
        return loop.call(double(1))

    with pytest.raises(RuntimeError, match="await it"):
        loop.call(nested())
