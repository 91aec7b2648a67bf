# SPDX-License-Identifier: Apache-2.0
"""`--hugepages`: with which options it goes, and the pool that a guest in the lab gets."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from pyvmm.cli.doctor import check_huge_pages
from pyvmm.cli.huge_pages import prepare_huge_pages
from pyvmm.cli.main import main
from pyvmm.config import HugePages, MachineConfig
from pyvmm.memory import huge_page_pool
from pyvmm.memory.huge_page_pool import HugePagePool
from pyvmm.sockets.lab_paths import IN_LAB_VARIABLE
from pyvmm.units import MIB
from tests.pyvmm.snapshot.sample_snapshot import CONFIG


@pytest.fixture
def grown(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list of the sizes to which a pool was grown, which are refused."""
    sizes: list[int] = []

    def grow(pages: int) -> None:
        sizes.append(pages)
        raise PermissionError

    monkeypatch.setattr(huge_page_pool, "grow_pool", grow)
    return sizes


@pytest.mark.parametrize(
    ("lab", "hugepages", "expected"),
    [("1", "hugetlbfs", [33]), ("1", "transparent", []), ("", "hugetlbfs", [])],
)
def test_only_a_pool_of_the_lab_is_changed(
    monkeypatch: pytest.MonkeyPatch,
    grown: list[int],
    lab: str,
    hugepages: HugePages,
    expected: list[int],
) -> None:
    monkeypatch.setenv(IN_LAB_VARIABLE, lab)
    prepare_huge_pages(hugepages, 65 * MIB)
    assert grown == expected


def test_a_restored_or_incoming_guest_gets_huge_pages_of_this_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do not belong to the guest's configuration, which it brings with it."""
    seen: list[tuple[object, ...]] = []

    def run(*values: object) -> int:
        seen.append(values)
        return 0

    for name in ("run_guest", "run_incoming_guest"):
        monkeypatch.setattr(f"pyvmm.cli.run.{name}", run)
    snapshot = SimpleNamespace(config=CONFIG)
    monkeypatch.setattr("pyvmm.snapshot.reader.SnapshotFile", lambda path, kinds: snapshot)
    for arguments in (
        ["--restore", str(tmp_path / "vm.snap")],
        ["--incoming", "unix:/m", "--memory", "64M"],
    ):
        with pytest.raises(SystemExit) as exit_info:
            main(["run", *arguments, "--hugepages", "hugetlbfs"])
        assert exit_info.value.code == 0
    (config, *_), incoming = seen
    assert isinstance(config, MachineConfig)
    assert config.hugepages == "hugetlbfs"
    assert "hugetlbfs" in incoming


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        (HugePagePool(512, 12, 2, 0, 0), "hugetlbfs: 10 of 512 pages of 2 MiB available"),
        (None, "no huge pages of 2 MiB to reserve"),
    ],
)
def test_doctor_reports_the_pool(
    monkeypatch: pytest.MonkeyPatch, pool: HugePagePool | None, words: str
) -> None:
    monkeypatch.setattr("pyvmm.cli.doctor.read_pool", lambda: pool)
    monkeypatch.setattr("pyvmm.cli.doctor.transparent_setting", lambda: "madvise")
    finding = check_huge_pages()
    assert finding.ok
    assert "transparent: madvise" in finding.found
    assert words in finding.found
