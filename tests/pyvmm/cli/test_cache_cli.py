# SPDX-License-Identifier: Apache-2.0
"""`pyvmm cache`: its table, and what `prune` and `limit` remove."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyvmm.cache.contents import read_limit
from pyvmm.cache.directory import cache_dir, cache_root
from pyvmm.machine import kvm_verdict
from tests.pyvmm.cli.test_cli import run_main

MIB = 1 << 20


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for number, kind in enumerate(("lab", "images", "images")):
        path = cache_dir(kind) / str(number)
        path.write_bytes(os.urandom(MIB))
        os.utime(path, (1000 + number, 1000 + number))
    return cache_root()


def left(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.glob("*/*"))


@pytest.mark.parametrize("arguments", [[], ["show"]])
def test_the_table_has_each_kind_with_its_size(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert run_main(["cache", *arguments]) == 0
    lines = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    rows = {cells[1].strip(): [cell.strip() for cell in cells[3:5]] for cells in lines}
    rows.pop("", None)  # the second line of a row
    assert rows == {"images": ["2", "2 MiB"], "lab": ["1", "1 MiB"]}


def test_prune_removes_all_that_is_not_in_use(
    capsys: pytest.CaptureFixture[str], root: Path
) -> None:
    with (root / "images" / "1").open("rb"):
        assert run_main(["cache", "prune", "images"]) == 0
        assert left(root) == ["images/1", "lab/0"]
        out = capsys.readouterr().out
        assert out == f"removed: 1 MiB\nin use: {root / 'images' / '1'}\n"
    assert run_main(["cache", "prune"]) == 0
    assert left(root) == []


def test_limit_removes_what_exceeds_it_and_is_remembered(root: Path) -> None:
    assert run_main(["cache", "limit", "2M"]) == 0
    assert left(root) == ["images/1", "images/2"]
    assert read_limit(root) == 2 * MIB
    assert run_main(["cache", "limit", "none"]) == 0
    assert read_limit(root) is None


def test_a_limit_that_cannot_be_written_is_an_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert run_main(["cache", "limit", "2M"]) == 2
    assert "XDG_CACHE_HOME" in capsys.readouterr().err


def test_the_fitness_of_kvm_can_be_forgotten(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm_verdict, "KVM_DEVICE", "/dev/null")  # exists everywhere
    kvm_verdict.record_fit()
    assert kvm_verdict.known_fit()
    assert run_main(["cache", "prune", "kvm"]) == 0
    assert not kvm_verdict.known_fit()
    assert len(left(root)) == 3


def test_an_unknown_kind_is_refused(capsys: pytest.CaptureFixture[str], root: Path) -> None:
    assert run_main(["cache", "prune", "everything"]) == 2
    assert "'everything' is not one of 'images'" in capsys.readouterr().err
    assert len(left(root)) == 3
