# SPDX-License-Identifier: Apache-2.0
"""The verdict of the demonstration, and the sizes of its steps."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from pyvmm.cli.demo.measure import PLOT_FILE, GuestSizes
from pyvmm.cli.demo.report import report
from pyvmm.cli.errors import CommandError
from pyvmm.units import MIB


def figures(
    *, fallen_mib: float = 512, wrong_bytes: int = 0, kept_bytes: int = 0
) -> dict[str, Any]:
    rss = {"booted": 70, "before": 900, "inflated": 900 - fallen_mib, "deflated": 390}
    steps = [
        {
            "name": name,
            "seconds": float(index),
            "rss_bytes": mib * MIB,
            "guest_free_bytes": 100 * MIB,
            "balloon_bytes": 0,
        }
        for index, (name, mib) in enumerate(rss.items())
    ]
    moved = {"seconds": 0.5, "pages": 512 * MIB // 4096, "requests": 2}
    return {
        "ram_bytes": 1024 * MIB,
        "hugepages": "transparent",
        "kept_bytes": kept_bytes,
        "dialect": "bitmap",
        "boot_seconds": 1.5,
        "steps": steps,
        "inflate": moved,
        "deflate": moved,
        "verified_bytes": 512 * MIB,
        "wrong_bytes": wrong_bytes,
        "samples": [{"seconds": s["seconds"], "rss_bytes": s["rss_bytes"]} for s in steps],
    }


@pytest.mark.parametrize(
    ("changes", "status", "failure"),
    [
        ({}, 0, None),
        ({"fallen_mib": 487}, 0, None),  # 95.1 %
        ({"fallen_mib": 486}, 1, "RSS fell by only 94.9%"),
        ({"fallen_mib": -3}, 1, "RSS fell by only -0.6%"),
        ({"wrong_bytes": 1}, 1, "1 bytes of the memory that the guest kept have changed"),
    ],
)
def test_the_report_fails_on_missing_memory_or_wrong_bytes(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    status: int,
    failure: str | None,
) -> None:
    assert report(figures(**changes), tmp_path, as_json=False) == status
    printed = " ".join(capsys.readouterr().out.split())
    assert ("FAILED" in printed) == (failure is not None)
    assert failure is None or failure in printed
    assert (tmp_path / PLOT_FILE).read_bytes().startswith(b"\x89PNG")


def test_the_report_names_what_the_host_keeps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report(figures(kept_bytes=3 * MIB), tmp_path, as_json=False)
    printed = " ".join(capsys.readouterr().out.split())
    assert "the host keeps 3 MiB of its balloon, as parts of huge pages" in printed
    assert "transparent huge pages" in printed


def test_without_matplotlib_the_report_names_the_extra_that_draws_the_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert report(figures(), tmp_path, as_json=False) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "No plot: it needs matplotlib, which pip install 'pyvmm-kvm[demo]' installs" in printed
    assert not (tmp_path / PLOT_FILE).exists()


def test_the_default_sizes_fit_the_guest() -> None:
    sizes = GuestSizes()
    assert sizes.keep_mib + sizes.inflate_mib < sizes.ram_mib
    assert sizes.ram_mib - sizes.inflate_mib < sizes.touch_mib
    assert sizes.reuse_mib > sizes.ram_mib - sizes.inflate_mib


@pytest.mark.parametrize("inflate_mib", [0, 63, 769, 1024, 5000])
def test_inflating_too_little_or_too_much_is_refused(inflate_mib: int) -> None:
    with pytest.raises(CommandError, match="cannot inflate") as caught:
        GuestSizes(1024, inflate_mib)
    assert caught.value.remedy == "choose --inflate 64M to 768M"
