# SPDX-License-Identifier: Apache-2.0
"""The demonstration's verdict: it fails when memory did not come back, or when a byte changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyvmm.cli.demo.measure import Script
from pyvmm.cli.demo.report import PICTURE_FILE, report
from pyvmm.errors import UserError
from pyvmm.units import MIB


def figures(*, fallen_mib: float = 512, wrong_bytes: int = 0) -> dict[str, Any]:
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
    ("changes", "status", "complaint"),
    [
        ({}, 0, None),
        ({"fallen_mib": 487}, 0, None),  # 95.1 %
        ({"fallen_mib": 486}, 1, "RSS fell by only 94.9%"),
        ({"fallen_mib": -3}, 1, "RSS fell by only -0.6%"),
        ({"wrong_bytes": 1}, 1, "1 bytes of memory the guest kept have changed"),
    ],
)
def test_verdict(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    status: int,
    complaint: str | None,
) -> None:
    assert report(figures(**changes), tmp_path) == status
    printed = " ".join(capsys.readouterr().out.split())
    assert ("FAILED" in printed) == (complaint is not None)
    assert complaint is None or complaint in printed
    assert (tmp_path / PICTURE_FILE).read_bytes().startswith(b"\x89PNG")


def test_the_default_script_fits_its_guest() -> None:
    script = Script()
    assert script.keep_mib + script.inflate_mib < script.ram_mib
    assert script.ram_mib - script.inflate_mib < script.touch_mib
    assert script.reuse_mib > script.ram_mib - script.inflate_mib


@pytest.mark.parametrize("inflate_mib", [0, 63, 769, 1024, 5000])
def test_a_guest_cannot_give_what_it_needs(inflate_mib: int) -> None:
    with pytest.raises(UserError, match="--inflate 64M to 768M"):
        Script(1024, inflate_mib)
