# SPDX-License-Identifier: Apache-2.0
"""Report a thread that cannot be started: the host limits them (RLIMIT_NPROC, a cgroup, memory)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyvmm.errors import ThreadNotStarted

_REFUSED = "can't start new thread"
"""The message of Python's `_thread`, which has no class of its own for that."""


@contextmanager
def thread_limit_reported() -> Iterator[None]:
    """Raise `ThreadNotStarted` if a thread that the block starts is refused."""
    try:
        yield
    except RuntimeError as error:
        if str(error) != _REFUSED:
            raise
        raise ThreadNotStarted("the host lets this process start no more threads") from error
