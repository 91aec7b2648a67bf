# SPDX-License-Identifier: Apache-2.0
"""Files that a command reads: only regular ones are opened, and nothing is waited for."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pyvmm.boot.elf_kernel import elf_kernel
from tests.pyvmm.cli.test_cli import run_main

LIMIT_S = 20

READERS = {
    "IMAGE": ["run", "FILE"],
    "--kernel": ["run", "--kernel", "FILE"],
    "--initrd": ["run", "KERNEL", "--initrd", "FILE"],
    "--restore": ["run", "--restore", "FILE"],
    "snapshot --info": ["snapshot", "FILE", "--info"],
    "image info": ["image", "info", "FILE"],
    "image build --source": ["image", "build", "--source", "FILE"],
    "image where --source": ["image", "where", "--source", "FILE"],
    "demo": ["demo", "FILE", "--output", "OUTPUT"],
}


@pytest.fixture(autouse=True)
def time_limit() -> Iterator[None]:
    def fail(*_: object) -> None:
        raise TimeoutError(f"still waiting after {LIMIT_S} s")

    former = signal.signal(signal.SIGALRM, fail)
    signal.alarm(LIMIT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, former)


def fill_in(arguments: list[str], file: str, directory: Path) -> list[str]:
    kernel = directory / "kernel"
    kernel.write_bytes(elf_kernel())
    names = {"FILE": file, "KERNEL": str(kernel), "OUTPUT": str(directory / "output")}
    return [names.get(argument, argument) for argument in arguments]


@pytest.mark.parametrize("reader", READERS)
def test_a_named_pipe_is_refused(
    reader: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert run_main(fill_in(READERS[reader], str(path), tmp_path)) == 2
    message = capsys.readouterr().err
    assert "a pipe, not a regular file" in message or "nor a regular file" in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("reader", READERS)
def test_a_pipe_of_the_shell_is_refused(
    reader: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As bash gives for `<(command)`."""
    inner, outer = os.pipe()
    try:
        os.write(outer, elf_kernel()[:1000])
        assert run_main(fill_in(READERS[reader], f"/dev/fd/{inner}", tmp_path)) == 2
    finally:
        os.close(inner)
        os.close(outer)
    message = capsys.readouterr().err
    assert "a pipe, not a regular file" in message or "nor a regular file" in message
    assert "None" not in message


@pytest.mark.parametrize("kind", ["socket", "device", "directory"])
def test_the_message_names_the_type_of_the_file(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file"
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "directory":
        path.mkdir()
    else:
        path = Path("/dev/zero")
    assert run_main(["run", "--restore", str(path)]) == 2
    assert f"{kind}, not a regular file" in capsys.readouterr().err
