# SPDX-License-Identifier: Apache-2.0
"""The directive for stored results of benchmarks."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.measure import TOTAL, Case
from bench.results import new_result
from pyvmm_docs.benchmark import lines_of
from tests.project.sources import ROOT


def test_a_page_shows_the_tables_of_the_results_page() -> None:
    page = (ROOT / "bench" / "results" / "README.md").read_text()
    provenance, plot, *tables = lines_of("footprint")
    assert provenance.startswith("*Taken on 20")
    assert "/../bench/results/footprint.png\n" in plot
    assert tables
    assert "\n".join(tables) in page


def test_results_of_the_lab_are_marked_as_such(tmp_path: Path) -> None:
    case = Case("PSS", "MiB", against="pyvmm")
    case.add("pyvmm", {TOTAL: 40.0})
    result = new_result("footprint", "Memory", False, [case])
    for kvm, said in (("this machine's", False), ("emulated, in the lab", True)):
        result.machine["kvm"] = kvm
        result.save(tmp_path / "footprint.json")
        assert ("emulated machine" in next(lines_of("footprint", tmp_path))) == said


def test_a_benchmark_without_results_says_how_to_get_them(tmp_path: Path) -> None:
    assert list(lines_of("footprint", tmp_path)) == [
        "There are no stored results yet; `pyvmm bench footprint` measures them."
    ]


def test_an_unknown_benchmark_is_refused() -> None:
    with pytest.raises(ValueError, match="'speed' is none of device, "):
        list(lines_of("speed"))
