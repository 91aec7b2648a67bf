# SPDX-License-Identifier: Apache-2.0
"""A guest for programs that are not asynchronous.

    with Guest("guest.img") as guest:
        result = guest.run(["free", "-m"])
        print(result.stdout, result.status)

A `Guest` is a `GuestSession` on an event loop in a thread of its own, so the guest's devices work
whatever the program does meanwhile, and several threads of the program can use one guest at once.
The session is `Guest.session`; `Guest.call` runs a coroutine on its event loop.

Threads: any.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from pyvmm.blocking.loop_thread import LoopThread
from pyvmm.config import DEFAULT_HUGEPAGES, HugePages
from pyvmm.guest_agent.client import DEFAULT_DIRECTORY
from pyvmm.harness.agent_config import GuestOptions, config_with_agent
from pyvmm.harness.command_runner import AGENT_TIMEOUT_S
from pyvmm.harness.completed_command import CompletedCommand
from pyvmm.harness.guest_session import (
    GuestSession,
    ResizeResult,
    guest_session,
    restored_session,
)
from pyvmm.machine.errors import KvmUnusable
from pyvmm.machine.kvm_probe import probe_host_kvm
from pyvmm.sockets.lab_paths import in_lab

if TYPE_CHECKING:
    from pyvmm.snapshot.saver import SnapshotStatus

REMEDY = "run the program where KVM works: pyvmm lab -- PROGRAM [ARG]..., see also 'pyvmm doctor'"
"""The note of `KvmUnusable`."""

_T = TypeVar("_T")


class Guest:
    """A running guest of the kernel `image` that has answered; it ends with its `with` block.

    `image` is a guest.img or any other kernel. `boot_timeout_s` is the longest time for the boot.
    The guest's events are recorded in the file `record`, for `pyvmm recording`. Raises
    `KvmUnusable`, and what `config_with_agent`, `guest_session` and `GuestSession.wait_for_agent`
    raise.
    """

    def __init__(
        self,
        image: Path | str,
        *,
        boot_timeout_s: float = AGENT_TIMEOUT_S,
        record: Path | str | None = None,
        **options: Unpack[GuestOptions],
    ) -> None:
        check_kvm()
        config, overlay = config_with_agent(Path(image), **options)
        session = guest_session(config, overlay=overlay, record=_path(record))
        self._start(session, boot_timeout_s)

    @classmethod
    def restore(
        cls,
        path: Path | str,
        *,
        timeout_s: float = AGENT_TIMEOUT_S,
        hugepages: HugePages = DEFAULT_HUGEPAGES,
        record: Path | str | None = None,
    ) -> Guest:
        """Resume the guest of a snapshot, and wait until it answers.

        Its RAM is in `hugepages`, and its events are recorded in the file `record`. The snapshot
        has to be of a `Guest` or of another machine of `config_with_agent`. Raises `KvmUnusable`,
        and what `restored_session` and `GuestSession.wait_for_agent` raise.
        """
        check_kvm()
        guest = cls.__new__(cls)
        session = restored_session(Path(path), hugepages=hugepages, record=_path(record))
        guest._start(session, timeout_s)
        return guest

    def _start(self, session: AbstractAsyncContextManager[GuestSession], timeout_s: float) -> None:
        self._thread = LoopThread("guest")
        self._stack = AsyncExitStack()
        atexit.register(self.close)
        try:
            self.session = self.call(self._open(session, timeout_s))
        except BaseException:
            self.close()
            raise

    async def _open(
        self, session: AbstractAsyncContextManager[GuestSession], timeout_s: float
    ) -> GuestSession:
        guest = await self._stack.enter_async_context(session)
        await guest.wait_for_agent(timeout_s)
        return guest

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def call(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine of the guest's session to its end, and return its result.

        It is cancelled if the wait is interrupted, as by Ctrl-C. RuntimeError after `close`.
        """
        return self._thread.call(coroutine)

    def run(
        self,
        arguments: Sequence[str],
        *,
        input: bytes | str = b"",
        environment: Mapping[str, str] | None = None,
        directory: str = DEFAULT_DIRECTORY,
        timeout_s: float | None = None,
        check: bool = False,
    ) -> CompletedCommand:
        """As `GuestSession.run`; a command is killed when the wait for it is interrupted."""
        return self.call(
            self.session.run(
                arguments,
                input=input,
                environment=environment,
                directory=directory,
                timeout_s=timeout_s,
                check=check,
            )
        )

    def resize_balloon(self, target_pages: int, *, force: bool = False) -> ResizeResult:
        """As `GuestSession.resize_balloon`."""
        return self.call(self.session.resize_balloon(target_pages, force=force))

    def save_snapshot(self, path: Path | str, *, keep_running: bool = True) -> SnapshotStatus:
        """As `GuestSession.save_snapshot`."""
        return self.call(self.session.save_snapshot(Path(path), keep_running=keep_running))

    def kernel_log(self) -> str:
        """Return the output on the serial console so far: the kernel's messages."""

        async def text() -> str:
            return self.session.console.text

        return self.call(text())

    def close(self) -> None:
        """End the guest, if it still runs, and release its resources."""
        atexit.unregister(self.close)
        if self._thread.closed:
            return
        try:
            self._thread.finish(self._stack.aclose())
        finally:
            self._thread.close()


def _path(path: Path | str | None) -> Path | None:
    return None if path is None else Path(path)


def check_kvm() -> None:
    """Raise `KvmUnusable`, with a note of the remedy, if this process cannot run a guest.

    KVM is probed in the main thread only, as that takes signals; elsewhere, the machine reports a
    KVM that is missing.
    """
    if in_lab() or threading.current_thread() is not threading.main_thread():
        return
    fitness = probe_host_kvm()
    if not fitness.fit:
        error = KvmUnusable(f"this machine's KVM cannot be used: {fitness.reason}")
        error.add_note(REMEDY)
        raise error
