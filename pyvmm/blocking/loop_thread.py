# SPDX-License-Identifier: Apache-2.0
"""An event loop in a daemon thread, for programs that are not asynchronous themselves.

`call` runs a coroutine on the loop and waits for its result. If the wait is interrupted, by Ctrl-C
or by another exception of a signal handler, the coroutine is cancelled. `asyncio` can do that with
`run_coroutine_threadsafe` only once that has returned, and a signal may arrive before.

Threads: any.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, TypeVar

from pyvmm.blocking.event_loop import run_on_new_loop
from pyvmm.blocking.thread_limit import thread_limit_reported

_SIGNAL_CHECK_S = 1.0
"""Longest delay of a signal that arrives just before Python blocks, which it does not notice."""

_T = TypeVar("_T")


class LoopThread:
    """A running event loop in a thread called `name`, until `close`.

    Raises `ThreadNotStarted`, and OSError if too many files are open.
    """

    def __init__(self, name: str) -> None:
        self._lock = threading.Lock()
        self._loop: Future[asyncio.AbstractEventLoop] = Future()
        self._ended = asyncio.Event()
        self._closed = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        with thread_limit_reported():
            self._thread.start()
        self._loop.result()

    def call(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Return, or raise, the result of `coroutine`.

        RuntimeError after `close`, or on the loop's own thread.
        """
        future: Future[_T] = Future()
        try:
            self._submit(coroutine, future)
            return _result(future)
        except BaseException:
            future.cancel()
            raise

    def finish(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Do as `call`, but let `coroutine` continue if the wait is interrupted."""
        future: Future[_T] = Future()
        self._submit(coroutine, future)
        return _result(future)

    @property
    def closed(self) -> bool:
        """True once the loop has been told to end."""
        return self._closed

    def close(self) -> None:
        """Cancel what runs on the loop, and end its thread."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._loop.result().call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def _submit(self, coroutine: Coroutine[Any, Any, _T], future: Future[_T]) -> None:
        """Start `coroutine` on the loop; its result goes to `future`, whose end cancels it."""
        with self._lock:
            reason = "its event loop has ended" if self._closed else ""
            if threading.current_thread() is self._thread:
                reason = "a coroutine cannot wait for another here: await it"
            if not reason:
                self._loop.result().call_soon_threadsafe(self._begin, coroutine, future)
                return
        coroutine.close()
        raise RuntimeError(reason)

    # On the event loop.
    def _begin(self, coroutine: Coroutine[Any, Any, _T], future: Future[_T]) -> None:
        loop = self._loop.result()
        task = loop.create_task(coroutine)
        self._tasks.add(task)

        def cancel(_: object) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(task.cancel)

        def pass_on(_: object) -> None:
            self._tasks.discard(task)
            error = None if task.cancelled() else task.exception()
            with suppress(InvalidStateError):  # nothing waits for it any more
                if task.cancelled():
                    future.cancel()
                elif error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(task.result())

        task.add_done_callback(pass_on)
        future.add_done_callback(cancel)

    def _run(self) -> None:
        try:
            run_on_new_loop(self._serve)
        except BaseException as error:
            if self._loop.done():
                raise
            self._loop.set_exception(error)

    async def _serve(self) -> None:
        self._loop.set_result(asyncio.get_running_loop())
        await self._ended.wait()


def _result(future: Future[_T]) -> _T:
    while not future.done():
        with suppress(TimeoutError):  # Python has called the handlers of signals
            future.exception(_SIGNAL_CHECK_S)
    return future.result()
