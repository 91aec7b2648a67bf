# SPDX-License-Identifier: Apache-2.0
"""Report a process that cannot be started: the host limits them (RLIMIT_NPROC, a cgroup)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyvmm.errors import ProcessNotStarted


@contextmanager
def process_limit_reported() -> Iterator[None]:
    """Raise `ProcessNotStarted` if a process that the block starts is refused (EAGAIN)."""
    try:
        yield
    except BlockingIOError as error:
        raise ProcessNotStarted("the host lets no more processes be started") from error
