# SPDX-License-Identifier: Apache-2.0
"""A restored guest whose snapshot is on a file system that does not respond."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pyvmm import vm
from pyvmm.errors import UserError
from pyvmm.snapshot import userfaultfd_loader
from pyvmm.snapshot.userfaultfd_loader import UserfaultfdLoader


class HangingLoader(UserfaultfdLoader):
    """Waits for a block of the file until `released`."""

    def __init__(self) -> None:
        threading.Thread.__init__(self, daemon=True)
        self.released = threading.Event()
        self._pages = cast(Any, SimpleNamespace(stop=lambda: None))

    def run(self) -> None:
        self.released.wait(60)


def test_memory_that_is_never_complete_fails_what_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vm, "LOADED_TIMEOUT_S", 0.05)
    loading = SimpleNamespace(_loader=SimpleNamespace(is_alive=lambda: True))
    with pytest.raises(UserError, match=r"has not been read from its snapshot within 0\.05 s"):
        asyncio.run(vm.VirtualMachine.memory_loaded(cast(Any, loading)))


def test_a_loader_that_hangs_does_not_delay_the_end_of_the_vm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(userfaultfd_loader, "STOP_TIMEOUT_S", 0.05)
    loader = HangingLoader()
    threading.Thread.start(loader)
    loader.stop()
    assert loader.is_alive()
    loader.released.set()
    loader.join()
