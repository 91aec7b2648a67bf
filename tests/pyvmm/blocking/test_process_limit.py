# SPDX-License-Identifier: Apache-2.0
"""A process that the host refuses is one error, wherever one is started."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from guest_images import initramfs, recipe
from pyvmm.blocking.process_limit import process_limit_reported
from pyvmm.cli.doctor import check_image_tools, check_qemu
from pyvmm.cli.remedies import with_remedy
from pyvmm.errors import ProcessNotStarted
from pyvmm.lab import qemu
from tests.project.sources import ROOT

REFUSED = (
    "the host lets no more processes be started;"
    " raise the limit of processes and threads, for example: ulimit -u 4096"
)
CALLS: dict[str, Callable[[], object]] = {
    "compiler": lambda: initramfs.compile_program(Path("a.c"), Path("a")),
    "headers": recipe.check_tools,
    "lab": lambda: qemu.LabProcess([sys.executable]),
}


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess.Popen, "_execute_child", refuse)


@pytest.mark.usefixtures("refused")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_refused_process_is_one_error(call: Callable[[], object]) -> None:
    with pytest.raises(ProcessNotStarted) as caught:
        call()
    assert with_remedy(caught.value) == REFUSED


@pytest.mark.usefixtures("refused")
def test_the_doctor_goes_on() -> None:
    for finding in (check_qemu(), check_image_tools()):
        assert f"{finding.found}; {finding.remedy}" == REFUSED


def test_other_errors_keep_their_type() -> None:
    with pytest.raises(FileNotFoundError), process_limit_reported():
        subprocess.run(["/no/such/program"], check=False)


def test_every_module_that_starts_processes_reports_the_limit() -> None:
    paths = [path for room in ("pyvmm", "guest_images") for path in ROOT.glob(f"{room}/**/*.py")]
    texts = {path: path.read_text() for path in paths}
    starts = re.compile(r"subprocess\.(?:run|Popen)\(|webbrowser\.open\(")
    starting = [path for path, text in texts.items() if starts.search(text)]
    assert len(starting) > 10
    assert not [path for path in starting if "process_limit_reported()" not in texts[path]]
