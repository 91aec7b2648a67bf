# SPDX-License-Identifier: Apache-2.0
"""The run of a VM on this terminal, where its machine cannot be created."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from pyvmm.cli import vm_start
from pyvmm.cli.record_options import RecordOptions
from pyvmm.cli.terminal_run import run_restored
from pyvmm.config import MachineConfig
from pyvmm.machine.errors import MachineNotCreated
from pyvmm.trace.recording_file import RecordingFile
from pyvmm.units import MIB


def test_a_machine_that_cannot_be_created_leaves_no_thread_and_an_earlier_recording(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MachineNotCreated("KVM refuses")

    monkeypatch.setattr(vm_start, "Platform", refuse)
    file = RecordingFile(tmp_path / "boot.rec")
    file.commit()
    file.close()
    earlier = (tmp_path / "boot.rec").read_bytes()
    before = set(threading.enumerate())
    config = MachineConfig(Path("/k"), None, "", 256 * MIB, 1, "standard")
    snapshot: Any = None
    with pytest.raises(MachineNotCreated):
        run_restored(config, snapshot, [], record=RecordOptions(tmp_path / "boot.rec", 0, 0))
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive(), thread.name
    assert os.listdir(tmp_path) == ["boot.rec"]
    assert (tmp_path / "boot.rec").read_bytes() == earlier
