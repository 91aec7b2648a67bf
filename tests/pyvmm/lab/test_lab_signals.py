# SPDX-License-Identifier: Apache-2.0
"""Signals end the process in front of a lab, whatever it waits for, and leave no socket."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

LIMIT_S = 15.0
"""Less than a command of QEMU may take."""
PROGRAM = """
import sys, threading
from pathlib import Path
from pyvmm.cli.end_signals import held_end_signals
from pyvmm.lab import run, session, signals, start
from pyvmm.lab.boot_snapshot import snapshot_path

def machine_arguments(memory_mib, cpus):
    machine = [str(directory / "qemu")]
    snapshot_path(machine).touch()
    return machine

def hang(*arguments, **options):
    (directory / "started").touch()
    threading.Event().wait()

where, directory = sys.argv[1], Path(sys.argv[2])
start.machine_arguments = machine_arguments
if where == "elsewhere":
    signals.END_TIMEOUT_S = 0.5
    start.machine_arguments = hang
with held_end_signals():
    sys.exit(run.run_in_lab(["true"], sockets=[directory / "control"]))
"""
STAND_IN = """#!/bin/sh
touch "$(dirname "$0")/started"
exec sleep 600
"""
"""A QEMU that does not answer."""


@contextmanager
def front_of_lab(where: str, directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Run `PROGRAM` until it waits for the lab's machine, or hangs `elsewhere`."""
    stand_in = directory / "qemu"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o700)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, where, str(directory)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(directory / "cache")},
    ) as process:
        try:
            ends_at = time.monotonic() + 60
            while not (directory / "started").exists():
                assert process.poll() is None
                assert time.monotonic() < ends_at
                time.sleep(0.01)
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_the_wait_for_a_machine_that_does_not_answer(
    signum: signal.Signals, tmp_path: Path
) -> None:
    with front_of_lab("QEMU", tmp_path) as process:
        assert (tmp_path / "control").is_socket()
        process.send_signal(signum)
        assert process.wait(LIMIT_S) == 128 + signum
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert not (tmp_path / "control").exists()


def test_a_process_that_waits_for_something_else_ends_within_its_limit(tmp_path: Path) -> None:
    with front_of_lab("elsewhere", tmp_path) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 128 + signal.SIGTERM
        assert process.stderr is not None
        assert process.stderr.read() == (
            "pyvmm: the lab has not ended within 0.5 s; the process ends now\n"
        )
    assert not (tmp_path / "control").exists()
