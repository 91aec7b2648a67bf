# SPDX-License-Identifier: Apache-2.0
"""A KVM that was fit refuses a guest: it is probed again, and the lab is used as for an unfit one.

The KVM of these tests is /dev/null, mounted over /dev/kvm: it can be opened, and refuses every
request. There is no QEMU, so the lab fails with an error of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pykvm import KvmError, System
from tests.pyvmm.boot.elf_kernel import elf_kernel

PROGRAM = """
import os, signal, sys
from pyvmm.cli.main import main
from pyvmm.machine import kvm_verdict
kvm_verdict.record_fit()
assert kvm_verdict.known_fit()
if sys.argv[1] == "signal":
    from pyvmm.machine.early_boot import EarlyBoot
    setup = EarlyBoot.setup
    def interrupted(boot):
        os.kill(os.getpid(), signal.SIGTERM)
        return setup(boot)
    EarlyBoot.setup = interrupted
    from pyvmm.lab import run, start
    run.start = lambda **options: start._interrupt(options["signals"])
try:
    main(sys.argv[2:])
finally:
    print("known" if kvm_verdict.known_fit() else "forgotten")
"""
REFUSED = "it cannot run a simple guest: KVM_GET_VCPU_MMAP_SIZE: Inappropriate ioctl for device"
IN_THE_LAB = (
    f"pyvmm: running in the lab: this machine's KVM is unfit: {REFUSED} (ENOTTY)\n"
    "pyvmm: qemu-system-x86_64 is not installed; apt-get install qemu-system-x86\n"
)


def run(
    directory: Path, *arguments: str, when: str = "refused"
) -> subprocess.CompletedProcess[str]:
    """Run pyvmm with `arguments` where KVM refuses everything."""
    runtime = directory / "runtime"
    runtime.mkdir(mode=0o700)
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c",
         'mount --bind /dev/null /dev/kvm && PATH=/nowhere && exec "$@"',
         "sh", sys.executable, "-c", PROGRAM, when, *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "XDG_CACHE_HOME": str(directory / "cache"),
             "XDG_RUNTIME_DIR": str(runtime)},
    )  # fmt: skip
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no /dev/kvm of our own here: {done.stderr}")
    assert [path for path in directory.rglob("*") if path.is_socket()] == []
    return done


@pytest.fixture
def kernel(tmp_path: Path) -> str:
    path = tmp_path / "vmlinux"
    path.write_bytes(elf_kernel())
    return str(path)


@pytest.mark.parametrize("guest", ["terminal", "named", "incoming"])
def test_auto_uses_the_lab(guest: str, kernel: str, tmp_path: Path) -> None:
    control = ("--qmp", f"unix:{tmp_path}/control")
    arguments = {
        "terminal": ("--kernel", kernel, "--memory", "128M"),
        "named": ("--kernel", kernel, "--memory", "128M", "--name", "web"),
        "incoming": ("--incoming", f"unix:{tmp_path}/m"),
    }
    done = run(tmp_path, "run", *arguments[guest], *control)
    assert done.stderr == IN_THE_LAB
    assert (done.returncode, done.stdout) == (2, "forgotten\n")


def test_host_says_why_it_cannot_be_used(kernel: str, tmp_path: Path) -> None:
    done = run(tmp_path, "run", "--kernel", kernel, "--memory", "128M", "--kvm", "host")
    assert done.stderr == (
        f"pyvmm: this machine's KVM cannot be used: {REFUSED} (ENOTTY); use --kvm lab\n"
    )
    assert (done.returncode, done.stdout) == (2, "forgotten\n")


def test_a_command_that_cannot_be_started_twice_is_started_in_the_lab(tmp_path: Path) -> None:
    done = run(tmp_path, "lab", "--", "true")
    assert done.stderr == IN_THE_LAB
    assert (done.returncode, done.stdout) == (2, "forgotten\n")


def test_a_signal_that_arrives_before_the_refusal_ends_the_process(
    kernel: str, tmp_path: Path
) -> None:
    done = run(tmp_path, "run", "--kernel", kernel, "--memory", "128M", when="signal")
    assert done.returncode == 128 + signal.SIGTERM, done.stderr


def test_too_few_descriptors_are_no_refusal(kernel: str, tmp_path: Path) -> None:
    """Of a KVM that works, which stays the choice."""
    try:
        with System() as system, system.create_vm():
            pass
    except KvmError as error:
        pytest.skip(f"no KVM here: {error}")
    done = subprocess.run(
        ["sh", "-c", 'ulimit -n 18; exec "$@"', "sh", sys.executable, "-c", PROGRAM, "refused",
         "run", "--kernel", kernel, "--memory", "128M", "--cpus", "8"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "known\n")
    assert done.stderr == (
        "pyvmm: the machine cannot be created: too many open files;"
        " raise the limit, for example: ulimit -n 256\n"
    )
