# SPDX-License-Identifier: Apache-2.0
"""Reports: their order, the peers that they name, and figures of too few rounds."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("bench")

from bench import peers, snapshot
from bench.measure import TOTAL, Case, Plan, seconds
from bench.plots import shared_bars
from bench.report import write_report
from bench.results import Result, new_result
from pyvmm.errors import UserError
from pyvmm.progress.reporter import Silent


def taken_with(qemu: str, *, kvm: str = "this machine's", bench: str = "boot") -> Result:
    """Return a result with a contender of QEMU's, which has three rounds."""
    case = Case("start", "s", against="QEMU pc")
    for value in (1.0, 2.0, 4.0):
        case.add("QEMU pc", {TOTAL: value, "guest": value / 2})
    for value in (1.0,) * 5:
        case.add("pyvmm", seconds(value))
    result = new_result(bench, f"{bench} {kvm}", False, [case])
    result.machine |= {"qemu": qemu, "kvm": kvm}
    return result


def test_native_results_come_first_and_large_guests_last(tmp_path: Path) -> None:
    emulated = "emulated, in the lab"
    results = [
        taken_with("7.2.22", kvm=emulated),
        taken_with("7.2.22", bench="exits"),
        taken_with("7.2.22", kvm=emulated, bench="snapshot-8gib"),
    ]
    write_report(tmp_path, results)
    page = (tmp_path / "README.md").read_text()
    headings = [line for line in page.splitlines() if line.startswith("#")]
    assert headings == [
        "# Benchmark results",
        *("## Native: the processor and the KVM of a real machine", "### exits this machine's"),
        *("## In the lab: an emulated machine", "### boot emulated, in the lab"),
        *("## Appendix: guests of 8 GiB", "### snapshot-8gib emulated, in the lab"),
    ]


def test_reports_name_the_version_of_qemu(tmp_path: Path) -> None:
    for version, is_pinned in (("7.2.22 (Debian 1:7.2)", True), ("10.0.2", False)):
        result = taken_with(version)
        write_report(tmp_path, [result])
        page = (tmp_path / "README.md").read_text()
        number = version.split()[0]
        assert f"| QEMU {number} pc | 2 s |" in page
        assert f"| QEMU {number} pc | 2 s | 50.0% |" in page
        assert ("QEMU is not the pinned version" in page) != is_pinned
    assert (
        result.named("QEMU 7.2.22 pc / QEMU with hints")
        == "QEMU 7.2.22 pc / QEMU 10.0.2 with hints"
    )


def test_figures_of_too_few_rounds_are_marked(tmp_path: Path) -> None:
    write_report(tmp_path, [taken_with("7.2.22")])
    page = (tmp_path / "README.md").read_text()
    assert "| QEMU 7.2.22 pc | 2 s | 1 to 4 | 3: too few | 1 |" in page
    assert "| pyvmm | 1 s | 1 to 1 | 5 | 0.500 |" in page
    assert "\nTables without a column of rounds have medians of 3 rounds, an indication.\n" in page
    exact = Case("bytes", "bytes/page", against="pyvmm", rounds={"pyvmm": [4.0]})
    assert exact.has_enough_rounds("pyvmm")


def test_contenders_with_the_same_values_share_a_bar() -> None:
    rounds = {"a": [4.0], "b": [2.0], "c": [4.0]}
    assert shared_bars(Case("bytes", "bytes/page", "a", rounds)) == [["a", "c"], ["b"]]


def write_qemu(directory: Path, version: str) -> Path:
    """Write a program that reports itself as QEMU of `version`."""
    directory.mkdir()
    program = directory / "qemu-system-x86_64"
    program.write_text(f"#!/bin/sh\necho 'QEMU emulator version {version} (Debian)'\n")
    program.chmod(0o755)
    return program


def test_the_baseline_is_the_pinned_qemu_and_others_are_extra_rows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    newer, pinned = (write_qemu(tmp_path / version, version) for version in ("10.0.2", "7.2.22"))
    named = write_qemu(tmp_path / "named", "9.2.0")
    monkeypatch.setenv("PATH", f"{newer.parent}:{pinned.parent}")
    peers.baseline.cache_clear()
    try:
        assert peers.baseline() == peers.Qemu(str(pinned), "7.2.22", "(Debian)")
        assert [peer.name for peer in peers.further(str(named))] == ["QEMU 10.0.2", "QEMU 9.2.0"]
        (extra,) = peers.further(None)
        assert extra.program == str(newer)
        plan = Plan(True, Silent(), peers=(extra,))
        assert list(snapshot._qemu_boots(plan)) == ["QEMU pc", "QEMU 10.0.2 pc"]
    finally:
        peers.baseline.cache_clear()


def test_a_program_that_is_not_qemu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="reports no version"):
        peers.read_qemu("/bin/true")
    with pytest.raises(UserError, match="cannot be run"):
        peers.read_qemu(str(tmp_path / "missing"))
