# SPDX-License-Identifier: Apache-2.0
"""Commands, terminals and the balloon with Debian's stock kernels and their own modules.

The command passes data on while the balloon inflates. Cloud kernels are given the directory of
their modules; the others lie as in their package, /boot beside /lib/modules, so that --modules auto
finds them.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm.memory.rss import resident_bytes
from pyvmm.units import MIB
from tests.kvm import debian_kernels
from tests.kvm.debian_kernels import StockKernel
from tests.kvm.pyvmm_process import RunProcess, run_pyvmm
from tests.kvm.terminal_process import pyvmm_run

pytestmark = pytest.mark.kvm

RAM_MIB = 224
TOUCHED_MIB = 64
"""Most of what is free after the boot, so that the balloon gets memory that the host has given."""
TARGET_MIB = 128
CHUNK = random.Random(2).randbytes(64 << 10)
CHUNK_INTERVAL_S = 0.2
"""The lab has one processor: faster, and the balloon would have to wait for it."""
SCRIPT = f"""uname -r >&2
head -c {TOUCHED_MIB * MIB} /dev/zero > /tmp/file; rm /tmp/file
cat
echo err >&2; exit 7"""


@pytest.mark.parametrize(
    "name",
    [
        "6.1-cloud",
        "6.12",
        pytest.param("6.1", marks=pytest.mark.long),
        pytest.param("6.12-cloud", marks=pytest.mark.long),
    ],
)
def test_a_command_in_a_stock_kernel_while_its_balloon_inflates(
    name: str, directory: Path, figure: Callable[[str], None]
) -> None:
    kernel = debian_kernels.cached(name)
    if kernel is None:
        pytest.skip(f"Debian's {name} is not in the cache; {debian_kernels.FETCH} fetches it")
    qmp = f"unix:{directory}/qmp"
    begin = time.monotonic()
    options = ["--memory", f"{RAM_MIB}M", "--qmp", qmp, "--", "sh", "-c", SCRIPT]
    process = subprocess.Popen(
        [sys.executable, "-m", "pyvmm", "run", *kernel_options(kernel, directory), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        sender = ChunkSender(process)
        sender.wait_for(1)
        boot_s, before = time.monotonic() - begin, resident_bytes(process.pid)
        inflated = run_pyvmm("balloon", f"{TARGET_MIB}M", "--qmp", qmp)
        after, passed = resident_bytes(process.pid), sender.received_chunks - 1
        inflated_s = time.monotonic() - begin - boot_s
        sender.wait_for(passed + 4)
        sent = sender.stop()
        errors = process.stderr.read() if process.stderr else b""
        assert process.wait(60) == 7, errors
    finally:
        process.kill()
        process.wait()
    figure(
        f"command, {kernel.version}: first data after {boot_s:.1f} s;"
        f" {passed * len(CHUNK) >> 10} KiB passed while the balloon took {RAM_MIB - TARGET_MIB} MiB"
        f" in {inflated_s:.1f} s; RSS {before // MIB} -> {after // MIB} MiB"
    )
    assert inflated.returncode == 0, inflated.stderr
    assert f"{TARGET_MIB} MiB" in inflated.stdout
    assert before - after > 40 * MIB
    assert passed > 1
    assert sender.received == CHUNK * sent
    release, *others = errors.decode().splitlines()
    assert release in kernel.version
    assert others == ["err"]


@pytest.mark.long
def test_the_initramfs_of_this_machine_gives_a_shell_to_a_guest_with_a_balloon(
    directory: Path,
) -> None:
    initrd = next(Path("/boot").glob("initrd.img-*-amd64"), None)
    if initrd is None:
        pytest.skip("this machine has no initramfs of Debian's")
    release = initrd.name.removeprefix("initrd.img-")
    qmp = f"unix:{directory}/qmp"
    kernel = ("--kernel", f"/boot/vmlinuz-{release}", "--initrd", initrd)
    with RunProcess(*kernel, "--append", "break=premount quiet", "--qmp", qmp) as guest:
        guest.expect("Spawning shell within the initramfs")
        guest.expect("built-in shell")
        inflated = run_pyvmm("balloon", "512M", "--qmp", qmp)
        assert (inflated.returncode, inflated.stderr) == (0, "")
        run_pyvmm("quit", "--qmp", qmp)
        assert guest.status() == 0
        assert "pyvmm agent" not in guest.rest


@pytest.mark.long
def test_a_terminal_in_a_stock_kernel_has_the_size_of_the_window(directory: Path) -> None:
    kernel = debian_kernels.cached("6.1-cloud")
    if kernel is None:
        pytest.skip(f"Debian's 6.1 is not in the cache; {debian_kernels.FETCH} fetches it")
    script = "trap 'stty size' WINCH; stty size; read line; read line"
    options = (*kernel_options(kernel, directory), "--memory", f"{RAM_MIB}M", "--", "sh", "-c")
    with pyvmm_run(*options, script, rows=31, columns=97) as terminal:
        terminal.expect("31 97")
        terminal.resize(40, 120)
        terminal.expect("40 120")
        terminal.type("\r\r")
        assert terminal.process.wait(60) == 0


def kernel_options(kernel: StockKernel, directory: Path) -> list[str]:
    """Return the options with which pyvmm boots the kernel and finds its modules."""
    modules = kernel.directory / "modules"
    if "cloud" in kernel.name:
        return ["--kernel", str(kernel.vmlinuz), "--modules", str(modules)]
    (directory / "boot").mkdir()
    (directory / "lib").symlink_to(modules / "lib")
    return ["--kernel", str(shutil.copy(kernel.vmlinuz, directory / "boot"))]


class ChunkSender:
    """Sends `CHUNK` to a process over and over, one at a time, and reads what it returns."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._input, self._output = process.stdin, process.stdout
        self._stopping = False
        self._sent = 0
        self.received = bytearray()
        self._threads = [threading.Thread(target=each) for each in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    @property
    def received_chunks(self) -> int:
        return len(self.received) // len(CHUNK)

    def wait_for(self, chunks: int) -> None:
        deadline = time.monotonic() + 100
        while self.received_chunks < chunks:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def stop(self) -> int:
        """End the input; return the number of chunks sent, all of which came back."""
        self._stopping = True
        for thread in self._threads:
            thread.join()
        return self._sent

    def _send(self) -> None:
        while not self._stopping:
            self._input.write(CHUNK)
            self._sent += 1
            time.sleep(CHUNK_INTERVAL_S)
        self._input.close()

    def _receive(self) -> None:
        while data := os.read(self._output.fileno(), len(CHUNK)):
            self.received += data
