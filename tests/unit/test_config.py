# SPDX-License-Identifier: Apache-2.0
"""What `pyvmm run` was asked for: limits, and the dialect that is said and never guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyvmm.config import MIB, MachineConfig, config_for_image
from pyvmm.errors import UserError
from pyvmm.outcome import Ending, Outcome
from tests.elf_kernel import elf_kernel

GOOD = {
    "kernel": Path("vmlinux"),
    "initrd": None,
    "command_line": "",
    "ram_bytes": 64 * MIB,
    "vcpus": 1,
    "dialect": "bitmap",
}


@pytest.mark.parametrize(
    "good", [{}, {"ram_bytes": 16384 * MIB}, {"vcpus": 8}, {"dialect": "standard"}]
)
def test_limits_included(good: dict[str, Any]) -> None:
    MachineConfig(**{**GOOD, **good})


@pytest.mark.parametrize(
    "bad",
    [
        {"ram_bytes": 63 * MIB},
        {"ram_bytes": 64 * MIB + 4096},
        {"ram_bytes": 16385 * MIB},
        {"ram_bytes": -MIB},
        {"vcpus": 0},
        {"vcpus": 9},
        {"dialect": "guess"},
    ],
)
def test_limits_excluded(bad: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="choose"):
        MachineConfig(**{**GOOD, **bad})


def test_a_kernel_without_a_manifest_gets_the_standard_dialect(tmp_path: Path) -> None:
    image = tmp_path / "vmlinux"
    image.write_bytes(elf_kernel())
    assert config_for_image(image).dialect == "standard"
    chosen = config_for_image(image, dialect="bitmap", append="quiet")
    assert chosen.dialect == "bitmap"
    assert chosen.command_line == "console=ttyS0 quiet"


def test_an_image_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pyvmm image build"):
        config_for_image(tmp_path / "none")


@pytest.mark.parametrize("ending", Ending)
def test_only_crashes_are_failures(ending: Ending) -> None:
    assert Outcome(ending).exit_status == (ending in (Ending.PANIC, Ending.CRASH))
