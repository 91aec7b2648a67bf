# SPDX-License-Identifier: Apache-2.0
"""The commands of the page "A guest in five minutes" do what it shows, from step 3 on.

One shell executes them in order, as on the page: later commands depend on its variables and on the
guests that it runs in the background. `...` in the page's output stands for any text, a number for
any number, and a row of the map of unused pages for any row. The page asks its reader to repeat a
command until the guest has started; so such a command is repeated here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.project.sources import ROOT

PAGE = ROOT / "docs" / "start" / "first-guest.md"
BACKGROUND_STEP = "## 3."
NOT_HERE = ("pyvmm lab -- bash", "exit")
"""The tests run in such a shell already."""
REPEATED = ("tail ", "pyvmm status")
START_TIMEOUT_S = 60.0
END_OF_OUTPUT = "end-of-output"

pytestmark = [pytest.mark.kvm, pytest.mark.slow]


class Command(NamedTuple):
    """A command of the page and the output that it shows, which may be empty."""

    text: str
    output: str

    def printed(self, output: str) -> bool:
        """Return whether `output` is what the page shows."""
        pattern = re.escape(_normal(self.output)).replace(re.escape("..."), ".*")
        pattern = re.sub(r"\d[\d,]*(\\\.\d+)?", r"[\\d,.]+", pattern)
        return not self.output or re.search(pattern, _normal(output)) is not None


def _normal(output: str) -> str:
    words = re.sub("─+", "─", " ".join(output.split()))  # as wide as the widest number
    return re.sub("[█▓▒░·]+", "·", words)


def commands(text: str) -> Iterator[Command]:
    """Yield the commands of the console blocks in `text`."""
    for block in re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            lines = part.splitlines()
            end = next(n for n, line in enumerate(lines, 1) if not line.endswith("\\"))
            yield Command("\n".join(lines[:end]), "\n".join(lines[end:]))


class Shell:
    """A shell in `folder` whose commands are executed one by one."""

    def __init__(self, folder: Path) -> None:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._process = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env={**os.environ, "PATH": path, "PYTHONPATH": f"{ROOT}:{ROOT / 'cython_src'}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: str) -> str:
        """Execute `command` and return its output."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\necho {END_OF_OUTPUT}\n")
        self._process.stdin.flush()
        output = ""
        for line in self._process.stdout:
            if line.endswith(f"{END_OF_OUTPUT}\n"):
                return output + line.removesuffix(f"{END_OF_OUTPUT}\n")
            output += line
        pytest.fail(f"the shell has ended after {command}:\n{output}")

    def end(self) -> None:
        """End the shell and the guests in its background."""
        self.run("kill $(jobs -p) 2>/dev/null; wait")
        self._process.communicate("exit\n", timeout=60)


@pytest.fixture
def shell(directory: Path, guest_image: Path) -> Iterator[Shell]:
    (directory / "guest.img").symlink_to(guest_image)
    shell = Shell(directory)
    yield shell
    shell.end()


def test_the_commands_of_the_page_do_what_it_shows(shell: Shell, directory: Path) -> None:
    text = PAGE.read_text()
    resident_kib = []
    for command in commands(text[text.index(BACKGROUND_STEP) :]):
        if command.text in NOT_HERE:
            continue
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            output = shell.run(command.text.replace("/dev/shm", str(directory)))
            if command.printed(output):
                break
            repeat = command.text.startswith(REPEATED) and time.monotonic() < deadline
            assert repeat, f"{command.text}\n{output}\nis not\n{command.output}"
            time.sleep(0.5)
        if command.text.startswith("grep VmRSS "):
            resident_kib.append(int(output.split()[1]))
    filled, inflated, restored = resident_kib
    assert filled - inflated > 600 << 10
    assert restored < 200 << 10
