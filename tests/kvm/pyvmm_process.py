# SPDX-License-Identifier: Apache-2.0
"""Run pyvmm's commands in processes of their own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import pytest


class RunProcess:
    """A `pyvmm run` whose console is a pair of pipes."""

    def __init__(self, *arguments: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pyvmm", "run", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def command(self, line: str) -> str:
        """Send a command to the `pattern` program in the guest; return its reply."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self.expect(r"^(ok|error) ")

    def expect(self, pattern: str) -> str:
        """Read lines until one matches `pattern`; return it."""
        assert self._process.stdout is not None
        lines = []
        for line in self._process.stdout:
            lines.append(line)
            if re.search(pattern, line):
                return line.strip()
        pytest.fail(f"the process ended without {pattern!r} in its output:\n{''.join(lines)}")

    def send_signal(self, signum: signal.Signals) -> None:
        self._process.send_signal(signum)

    def status(self) -> int:
        """Wait for the process to end; return its exit status."""
        self.rest, _ = self._process.communicate(timeout=200)
        return self._process.returncode

    def __enter__(self) -> RunProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.wait()


def run_pyvmm(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and capture its output."""
    return subprocess.run(
        [sys.executable, "-m", "pyvmm", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
