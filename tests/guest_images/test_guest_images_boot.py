# SPDX-License-Identifier: Apache-2.0
"""The finished image, booted by QEMU without KVM.

These tests (console, ACPI, report of a panic) do not depend on our machine. The image is the one in
the cache; if there is none yet, it is built first, which takes minutes.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from guest_images.build import build_image
from guest_images.manifest import read_manifest
from pyvmm.progress.reporter import Silent

QEMU = "qemu-system-x86_64"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not shutil.which(QEMU), reason="there is no QEMU"),
]


class Boot(NamedTuple):
    """QEMU's exit status, and the console's lines from the first of user space on."""

    status: int
    lines: list[str]


@pytest.fixture(scope="module")
def image() -> Path:
    return build_image(progress=Silent())


def boot(image: Path, command: str, *options: str, append: str = "") -> Boot:
    """Run `command` in the image under QEMU until the machine ends."""
    return boot_with(image, f'{append} pyvmm.run="{command}"', *options)


def boot_with(image: Path, append: str, *options: str) -> Boot:
    """Boot the image under QEMU with `append` added to its own command line.

    The log level hides warnings, such as those of a slow host's timers, among the command's lines.
    """
    manifest = read_manifest(image)
    assert manifest is not None
    command_line = f"{manifest.command_line()} loglevel=4 {append}"
    machine = ["-accel", "tcg", "-nographic", "-nodefaults", "-serial", "stdio", "-no-reboot"]
    done = subprocess.run(
        [QEMU, *machine, "-kernel", str(image), "-append", command_line, *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=280,
        check=False,
    )
    console = done.stdout.decode(errors="replace").replace("\r", "")
    start = console.find("pyvmm guest: user space up after")
    assert start >= 0, console + done.stderr.decode()
    return Boot(done.returncode, console[start:].splitlines())


def without_kernel_messages(lines: list[str]) -> list[str]:
    return [line for line in lines if not re.match(r"\[ *\d+\.\d+\]", line)]


@pytest.mark.parametrize(("memory_mib", "cpus"), [(64, 1), (512, 4)])
def test_the_image_boots_runs_a_command_and_powers_off(
    image: Path, memory_mib: int, cpus: int
) -> None:
    command = "nproc; pattern alloc 20 fill 7 verify 7 free; exit 3"
    status, lines = boot(image, command, "-m", str(memory_mib), "-smp", str(cpus))
    assert status == 0
    assert re.fullmatch(r"pyvmm guest: user space up after \d+\.\d\d s", lines[0])
    assert without_kernel_messages(lines[1:]) == [
        str(cpus),
        "ok allocated 20 MiB",
        "ok filled 20971520",
        "ok verified 20971520 wrong 0",
        "ok freed 20 MiB",
        "pyvmm guest: command ended with status 3",
    ]


@pytest.mark.parametrize(
    "append",
    [
        "pyvmm.run='hello'",
        'pyvmm.run="hello" quiet',
        '"pyvmm.run=hello" quiet',
        "pyvmm.run=hello quiet",
        "xpyvmm.run=other pyvmm.run=hello",
    ],
)
def test_the_command_is_found_with_any_quoting(image: Path, append: str) -> None:
    """The kernel removes double quotes only; the shell removes single ones."""
    _, lines = boot_with(image, append, "-m", "128")
    assert "sh: hello: not found" in lines


def test_output_before_power_off_is_not_lost(image: Path) -> None:
    _, lines = boot(image, "seq 2000; poweroff; sleep 60", "-m", "128")
    assert without_kernel_messages(lines[1:]) == [str(number) for number in range(1, 2001)]


def test_a_reboot_ends_the_guest(image: Path) -> None:
    status, lines = boot(image, "reboot; sleep 60", "-m", "128")
    assert status == 0
    assert any("reboot: Restarting system" in line for line in lines)


def test_allocating_more_than_the_free_memory_is_refused(image: Path) -> None:
    _, lines = boot(image, "pattern alloc 200; pattern alloc 60 fill 1 verify 1", "-m", "128")
    assert re.fullmatch(r"error 200 MiB requested, \d+ MiB available", lines[1])
    assert "ok verified 62914560 wrong 0" in lines


def test_a_panic_is_reported_to_the_host(image: Path) -> None:
    options = ("-device", "pvpanic", "-action", "panic=exit-failure", "-m", "128")
    status, lines = boot(image, "echo c >/proc/sysrq-trigger", *options)
    assert status == 1
    assert any("Kernel panic - not syncing: sysrq triggered crash" in line for line in lines)


def newc(name: str, content: bytes) -> bytes:
    """Return one file of an initramfs archive in the "newc" format."""

    def padded(data: bytes) -> bytes:
        return data + bytes(-len(data) % 4)

    numbers = [0, 0o100644, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
    header = b"070701" + "".join(f"{number:08x}" for number in numbers).encode()
    return padded(header + name.encode() + b"\0") + padded(content)


def test_an_external_initramfs_is_unpacked_over_the_built_in_one(
    image: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "more.cpio"
    archive.write_bytes(newc("more", b"from outside\n") + newc("TRAILER!!!", b""))
    _, lines = boot(image, "cat /more", "-m", "128", "-initrd", str(archive))
    assert lines[1] == "from outside"


def test_the_driver_follows_the_command_line(image: Path) -> None:
    """With a stock device, the driver uses the standard protocol, whatever dialect was chosen."""
    manifest = read_manifest(image)
    assert manifest is not None
    assert manifest.dialect == "bitmap"
    command = (
        "cat /sys/module/virtio_balloon/parameters/dialect; dmesg | grep -c lack[s];"
        " dmesg | grep -c 'unknown dialec[t]'"
    )
    options = ("-m", "128", "-device", "virtio-balloon-pci")
    assert boot(image, command, *options).lines[1:4] == ["bitmap", "1", "0"]
    for word, lacks, unknown in (("standard", "0", "0"), ("ranges", "1", "0"), ("v9", "0", "1")):
        other = boot(image, command, *options, append=f"virtio_balloon.dialect={word}")
        assert other.lines[1:4] == [word, lacks, unknown]
