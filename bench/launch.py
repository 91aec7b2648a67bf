# SPDX-License-Identifier: Apache-2.0
"""Guests launched from a command line: a new process with the serial console on its output.

The process inherits nothing from this one: pyvmm gets an interpreter of its own. (In the lab a
command `python -m pyvmm` is a fork of the lab's agent, see `pyvmm.lab.preload`; that applies to
commands that the lab is asked to run, not to the processes they start, as here.) For all contenders
image and working directory are in memory, and programs and libraries come from ordinary files: in
the lab, for Python's modules and QEMU's libraries alike, from its cached 9p mount. A warm-up has
them in the page cache.

`QEMU pc` is QEMU's default machine, `QEMU microvm` its smallest with all optional parts off. ACPI
stays on: without it, and without an MP table, a kernel finds no interrupt controller. Both get the
kernel by its PVH entry, the image's own command line, and a balloon.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from bench.peers import Qemu, baseline
from guest_images.manifest import read_manifest
from pyvmm.errors import UserError

MEMORY = "/dev/shm"
TIMEOUT_S = 120.0
TIMES_FD = "BENCH_TIMES_FD"
"""The environment variable that names the descriptor to which a process may write times."""

MACHINES = {
    "QEMU pc": ("-machine", "pc", "-device", "virtio-balloon-pci"),
    "QEMU microvm": (
        *("-machine", "microvm,pic=off,pit=off,rtc=off"),
        *("-device", "virtio-balloon-device"),
    ),
}


@dataclass(frozen=True)
class LaunchedGuest:
    """The guest to boot; its image is in memory."""

    image: Path
    ram_mib: int
    vcpus: int

    def qemu(
        self, machine: str, *, append: str = "", peer: Qemu | None = None, cpu: str = "host"
    ) -> list[str]:
        """Return QEMU's command line for one of `MACHINES`; `append` is for the kernel.

        `peer` is the QEMU, if not the baseline.
        """
        manifest = read_manifest(self.image)
        assert manifest is not None, f"{self.image} is not a guest image"
        return [
            *((peer or baseline()).program, "-nodefaults", "-no-user-config", "-no-reboot"),
            *("-display", "none"),
            *MACHINES[machine],
            *("-accel", "kvm", "-cpu", cpu, "-m", f"{self.ram_mib}M", "-smp", str(self.vcpus)),
            *("-kernel", str(self.image)),
            *("-append", f"{manifest.command_line('standard')} {append}".strip()),
            *("-serial", "stdio"),
        ]

    def pyvmm(self, *interpreter: str) -> list[str]:
        """Return pyvmm's command line; `interpreter` are Python's arguments, such as `-m pyvmm`."""
        return [sys.executable, *interpreter, *self.pyvmm_arguments()]

    def pyvmm_arguments(self) -> list[str]:
        """Return the arguments of the command `pyvmm`."""
        memory = ("--memory", f"{self.ram_mib}M")
        return ["run", str(self.image), *memory, "--cpus", str(self.vcpus), "--kvm", "host"]


@contextmanager
def in_memory(image: Path) -> Iterator[Path]:
    """Provide a copy of `image` in memory, last modified long ago.

    The ELF tables of a file that has just been modified are not cached (`pyvmm.elf.tables`), so
    every launch in the first two seconds would parse those of a new image.
    """
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        copy = Path(directory, "guest.img")
        shutil.copyfile(image, copy)
        os.utime(copy, (0, 0))
        yield copy


class EndedProcess(NamedTuple):
    """A process that ran from `begin_s` to `end_s`; `times` is what it has written to `TIMES_FD`.

    `message` is its standard error.
    """

    begin_s: float
    end_s: float
    status: int
    message: str
    times: str


def run_to_end(argv: list[str], environment: Mapping[str, str] | None = None) -> EndedProcess:
    """Run `argv`, with `environment` added to that of this process, until it ends."""
    reader, writer = os.pipe()
    with open(reader) as times:
        begin_s = time.monotonic()
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                cwd=MEMORY,
                pass_fds=(writer,),
                env={**os.environ, **(environment or {}), TIMES_FD: str(writer)},
                timeout=TIMEOUT_S,
                check=False,
            )
            end_s = time.monotonic()
        finally:
            os.close(writer)
        message = done.stderr.decode(errors="replace").strip()
        return EndedProcess(begin_s, end_s, done.returncode, message, times.read())


class LaunchedProcess:
    """A process whose output is a guest's console; killed at the end of the `with` block."""

    def __init__(self, argv: list[str], pass_fds: tuple[int, ...] = ()) -> None:
        self.begin = time.monotonic()
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=MEMORY,
            pass_fds=pass_fds,
        )
        self.pid = self._process.pid
        self._output = b""

    def wait_for(self, text: str) -> float:
        """Return the seconds from the start of the process until `text` was on its output."""
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        while text.encode() not in self._output:
            left_s = self.begin + TIMEOUT_S - time.monotonic()
            ready, _, _ = select.select([fd], [], [], max(left_s, 0))
            data = os.read(fd, 65536) if ready else b""
            if not data:
                why = "ended" if ready else "took too long"
                tail = self._output[-500:].decode(errors="replace")
                raise UserError(f"{self._process.args!r} {why} before {text!r}; its output: {tail}")
            self._output += data
        return time.monotonic() - self.begin

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
