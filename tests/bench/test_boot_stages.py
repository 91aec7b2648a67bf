# SPDX-License-Identifier: Apache-2.0
"""The stages of a boot are timed by functions that pyvmm has."""

from __future__ import annotations

import json
import os
from importlib import import_module
from typing import Any

import pytest

pytest.importorskip("bench")

from bench.boot import STAMPED
from pyvmm.cli import entry
from pyvmm_native import kvm_run


def test_every_stage_of_a_boot_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    guest_run: Any = import_module("pyvmm.cli.guest_run")
    native: Any = kvm_run

    def returns(*args: Any) -> None:
        """Stand for each function that is wrapped."""

    def main() -> None:
        guest_run.config_for_image()
        native.run()

    monkeypatch.setattr(guest_run, "config_for_image", returns)
    monkeypatch.setattr(kvm_run, "run", returns)
    monkeypatch.setattr(entry, "main", main)
    reader, writer = os.pipe()
    monkeypatch.setattr("sys.argv", ["-c", str(writer)])
    exec(STAMPED, {})
    with open(reader, "rb") as stamps:
        taken = json.load(stamps)
    assert list(taken) == ["interpreter", "imports", "machine"]
    assert list(taken.values()) == sorted(taken.values())
