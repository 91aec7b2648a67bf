# SPDX-License-Identifier: Apache-2.0
"""The lab's emulated machine: a QEMU process that cannot outlive this one.

QEMU's TCG emulates an AMD processor with SVM and nested paging. Besides memory and processors the
machine has two 9p shares of the root file system (one mounted without a cache, one with), one
virtio-serial port for the link, a monitor for snapshots, and a serial console whose output is kept
in memory, to be shown if the lab fails.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

from pyvmm.blocking.process_limit import process_limit_reported
from pyvmm.errors import NotInstalled
from pyvmm.lab.agent import PORT_NAME
from pyvmm.lab.boot_snapshot import BootSnapshotError, QemuMonitor, resume_arguments
from pyvmm.lab.initramfs import build_initramfs, init_arguments
from pyvmm.lab.kernel import find_kernel, startable_image

QEMU = "qemu-system-x86_64"
DEBIAN_PACKAGE = "qemu-system-x86"
TRANSLATION_CACHE_MIB = 512
# TCG does not intercept XSETBV for a nested guest (its choice would leak into the lab's kernel, and
# the sizes KVM reports would be stale), so there is no XSAVE. QEMU would leave the features that
# require it, which mislead the lab's own kernel. Five-level paging only costs time. Told that
# string instructions are fast (ERMS), kernels would clear memory with `rep stosb`, which TCG
# executes byte by byte: four times slower than by words.
_DISABLED = (
    *("xsave", "avx", "avx2", "f16c", "fma", "mpx", "pku", "vaes", "vpclmulqdq"),
    *("la57", "erms"),
)
CPU_MODEL = ",".join(("max", *(f"-{feature}" for feature in _DISABLED)))
_PR_SET_PDEATHSIG = 1

# Without the unused disk controller, bus and timers, which the kernel would probe.
_MACHINE = "q35,sata=off,smbus=off,vmport=off,hpet=off"

_KERNEL_COMMAND_LINE = (
    "console=ttyS0",
    "quiet",
    "panic=-1",
    "mitigations=off",
    "tsc=reliable",
    "no_timer_check",
    "random.trust_cpu=on",
    "init_on_alloc=0",
    "cryptomgr.notests",  # a second of every start
    "kvm_amd.nested=0",
    "kvm_amd.npt=1",
)


def find_qemu() -> str:
    """Return the path of QEMU. Raises NotInstalled if it is not installed."""
    path = shutil.which(QEMU)
    if path is None:
        raise NotInstalled(f"{QEMU} is not installed", DEBIAN_PACKAGE)
    return path


def machine_arguments(memory_mib: int, cpus: int) -> list[str]:
    """Return QEMU's path and the arguments that define the machine.

    Finds the kernel and builds the initramfs. Raises NotInstalled, LabKernelUnreadable.
    """
    qemu = find_qemu()
    kernel = find_kernel()
    share = "local,path=/,security_model=none,multidevs=remap"
    return [
        *(qemu, "-name", "pyvmm-lab", "-nodefaults", "-no-user-config", "-no-reboot"),
        *("-display", "none", "-machine", _MACHINE, "-m", f"{memory_mib}M", "-smp", str(cpus)),
        *("-accel", f"tcg,thread=multi,tb-size={TRANSLATION_CACHE_MIB}"),
        *("-cpu", CPU_MODEL),
        *("-kernel", str(startable_image(kernel)), "-initrd", str(build_initramfs(kernel))),
        *("-append", " ".join((*_KERNEL_COMMAND_LINE, *init_arguments()))),
        *("-fsdev", f"{share},id=root", "-device", "virtio-9p-pci,fsdev=root,mount_tag=root"),
        *("-fsdev", f"{share},id=programs,readonly=on"),
        *("-device", "virtio-9p-pci,fsdev=programs,mount_tag=programs"),
        *("-device", "virtio-serial-pci"),
        *("-device", f"virtserialport,chardev=link,name={PORT_NAME}"),
        *("-serial", "chardev:console"),
    ]


def _connections(link: int, monitor: int, console: int) -> list[str]:
    """Return the further QEMU arguments, which pass it the descriptors it shares with us."""
    return [
        *("-chardev", f"socket,id=link,fd={link}"),
        *("-chardev", f"socket,id=monitor,fd={monitor}", "-mon", "chardev=monitor,mode=control"),
        *("-chardev", f"file,id=console,path=/proc/self/fd/{console}"),
    ]


class LabProcess:
    """A QEMU process that runs `machine`, and our ends of its link and monitor."""

    def __init__(self, machine: list[str], snapshot: Path | None = None) -> None:
        """Start QEMU; it boots its kernel, or resumes the `snapshot` of the machine."""
        self.snapshot = snapshot
        self.link, link = socket.socketpair()
        monitor, qemu_monitor = socket.socketpair()
        self.monitor = QemuMonitor(monitor)
        self.console_fd = os.memfd_create("pyvmm-lab-console", os.MFD_CLOEXEC)
        fds = (link.fileno(), qemu_monitor.fileno(), self.console_fd)
        more = resume_arguments(snapshot) if snapshot is not None else []
        with link, qemu_monitor:
            self._process = _spawn([*machine, *_connections(*fds), *more], fds, self.console_fd)
        self._ended = False

    def console(self, lines: int) -> list[str]:
        """Return the last `lines` that the lab's kernel and QEMU printed."""
        size = os.fstat(self.console_fd).st_size
        start = max(0, size - lines * 100)
        text = os.pread(self.console_fd, size - start, start).decode(errors="replace")
        return [line.strip() for line in text.splitlines() if line.strip()][-lines:]

    def processors(self) -> list[str]:
        """Return the state of each processor, or QEMU's error if it does not respond."""
        try:
            text = self.monitor.execute(
                "human-monitor-command", **{"command-line": "info registers -a"}
            )
        except BootSnapshotError as error:
            return [str(error)]
        return re.findall(r"^(?:CPU#\d+|RIP=.*)", str(text), re.MULTILINE)

    def end(self) -> None:
        """Kill QEMU, wait for it and close the descriptors; may be called repeatedly."""
        if self._ended:
            return
        self._ended = True
        self._process.kill()
        self._process.wait()
        self.monitor.close()
        self.link.close()
        os.close(self.console_fd)


def _spawn(argv: list[str], fds: tuple[int, ...], stderr: int) -> subprocess.Popen[bytes]:
    """Start QEMU so that the kernel kills it when this process ends for any reason."""
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def die_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    with process_limit_reported():
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            pass_fds=fds,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
