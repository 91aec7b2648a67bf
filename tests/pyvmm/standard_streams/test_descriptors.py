# SPDX-License-Identifier: Apache-2.0
"""A start with each subset of descriptors 0 to 2 closed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from itertools import chain, combinations
from pathlib import Path

import pytest

from pyvmm.sockets.lab_paths import IN_LAB_VARIABLE
from pyvmm.standard_streams.descriptors import write_all

SUBSETS = list(chain.from_iterable(combinations((0, 1, 2), count) for count in range(4)))
REPORT = """
opened=$(readlink -f /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2)
echo "$opened" >"$0"
echo said
echo told >&2
"""


def numbers(descriptors: tuple[int, ...]) -> str:
    return ",".join(map(str, descriptors)) or "none"


def close(descriptors: tuple[int, ...]) -> None:
    for fd in descriptors:
        os.close(fd)


@pytest.mark.parametrize("descriptors", SUBSETS, ids=numbers)
def test_closed_descriptors_are_opened_on_dev_null(
    descriptors: tuple[int, ...], tmp_path: Path
) -> None:
    report = tmp_path / "report"
    names = [tmp_path / name for name in ("stdin", "stdout", "stderr")]
    names[0].touch()
    with names[0].open() as stdin, names[1].open("w") as stdout, names[2].open("w") as stderr:
        done = subprocess.run(
            [sys.executable, "-m", "pyvmm", "lab", "--", "sh", "-c", REPORT, str(report)],
            env={**os.environ, IN_LAB_VARIABLE: "1"},  # so that the command runs on this host
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            preexec_fn=lambda: close(descriptors),
            timeout=60,
            check=False,
        )
    assert done.returncode == 0
    opened = [os.devnull if fd in descriptors else str(name) for fd, name in enumerate(names)]
    assert report.read_text().split() == opened
    assert names[1].read_text() == ("" if 1 in descriptors else "said\n")
    assert names[2].read_text() == ("" if 2 in descriptors else "told\n")


def test_help_and_errors_work_without_open_streams() -> None:
    statuses = [
        subprocess.run(
            [sys.executable, "-m", "pyvmm", *arguments],
            preexec_fn=lambda: close((0, 1, 2)),
            timeout=60,
            check=False,
        ).returncode
        for arguments in (["--help"], ["run", "/absent"])
    ]
    assert statuses == [0, 2]


def test_write_all_waits_for_the_reader_of_a_nonblocking_pipe() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    data = os.urandom(1 << 20)
    thread = threading.Thread(target=write_all, args=(writer, data))
    thread.start()
    received = b""
    while len(received) < len(data):
        received += os.read(reader, 4096)
    thread.join(10)
    assert received == data
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        write_all(writer, b"x")
    os.close(writer)


@pytest.mark.parametrize(
    ("stream", "arguments", "status"),
    [("stdout", ["run", "--help"], 0), ("stderr", ["run", "/absent"], 2)],
)
def test_commands_wait_for_the_reader_of_a_nonblocking_pipe(
    stream: str, arguments: list[str], status: int
) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    filled = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            filled += os.write(writer, bytes(4096))
    process = subprocess.Popen(
        [sys.executable, "-m", "pyvmm", *arguments],
        stdout=writer if stream == "stdout" else subprocess.DEVNULL,
        stderr=writer if stream == "stderr" else subprocess.DEVNULL,
    )
    os.close(writer)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.7)
    with open(reader, "rb") as pipe:
        printed = pipe.read()[filled:]
    assert process.wait(10) == status
    assert printed.endswith(b"\n")
