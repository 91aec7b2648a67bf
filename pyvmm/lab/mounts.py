# SPDX-License-Identifier: Apache-2.0
"""System calls of the lab's init process: mounts, modules, the clock, power-off.

The initramfs stays the agent's own root. The host's root file system is mounted at `ROOT` over 9p,
without a cache, so that both sides see each other's changes at once. Directories that hold programs
and are only read (the host chooses them) are mounted over it again with a cache, which speeds up
the start of Python. The command gets a mount namespace of its own, in which `ROOT` is `/`.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import time

from pyvmm.lab.module_parameters import module_parameters

ROOT = "/host"

_libc = ctypes.CDLL(None, use_errno=True)

_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_MOVE = 2, 4, 4096, 8192
_CLONE_NEWNS = 0x20000
_SYS_FINIT_MODULE = 313
_REBOOT_POWER_OFF = 0x4321FEDC
_RNDRESEEDCRNG = 0x5207
_9P = "trans=virtio,version=9p2000.L,msize=512000,access=client"
_PORT_TIMEOUT_S = 10.0


def _check(result: int, call: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Call mount(2). Raises OSError, which names a path in `ROOT` as the command sees it."""
    args = [text.encode() or None for text in (source, target, kind)]
    shown = target.removeprefix(ROOT) or "/"
    _check(_libc.mount(*args, ctypes.c_ulong(flags), options.encode() or None), f"mount {shown}")


def load_module(path: str, parameters: str) -> None:
    """Load an uncompressed module with finit_module(2), unless it is loaded already."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.syscall(_SYS_FINIT_MODULE, fd, parameters.encode(), 0), path)
    except FileExistsError:
        return
    finally:
        os.close(fd)


def prepare() -> None:
    """Mount the kernel's file systems and load the modules: the part that the snapshot keeps."""
    for kind, target in (("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")):
        os.makedirs(target, exist_ok=True)
        mount(kind, target, kind)
    with open("/modules/order") as order, open("/proc/cmdline") as words:
        command_line = words.read()
        for name in order.read().split():
            parameters = module_parameters(command_line, name.removesuffix(".ko"))
            load_module(f"/modules/{name}", parameters)


def mount_host_root(cached: list[str]) -> None:
    """Mount the host's root file system at `ROOT`.

    `cached` are directories there that hold only programs.
    """
    os.makedirs(ROOT)
    mount("root", ROOT, "9p", 0, _9P + ",cache=mmap")
    if cached:
        os.makedirs("/programs")
        mount("programs", "/programs", "9p", 0, _9P + ",cache=loose,ro")
        for directory in cached:
            mount("/programs" + directory, ROOT + directory, flags=_MS_BIND)
    for kind, target in (("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")):
        mount(kind, ROOT + target, kind)
    for kind, target in (("devpts", "/dev/pts"), ("tmpfs", "/dev/shm")):
        os.makedirs(target, exist_ok=True)
        mount(kind, ROOT + target, kind, _MS_NOSUID | _MS_NODEV)
    mount(ROOT + "/dev/pts", "/dev/pts", flags=_MS_BIND)


def path_in_root(path: str) -> str:
    """Return the agent's path of the command's `path`; the agent's root is the initramfs."""
    return ROOT + path


def enter_root() -> None:
    """Make `ROOT` the root of this process, in a mount namespace of its own."""
    _check(_libc.unshare(_CLONE_NEWNS), "unshare")
    os.chdir(ROOT)
    mount(".", "/", flags=_MS_MOVE)
    os.chroot(".")


def open_port(name: str) -> int:
    """Open the virtio-serial port called `name`, waiting for it to appear."""
    deadline = time.monotonic() + _PORT_TIMEOUT_S
    ports = "/sys/class/virtio-ports"
    while time.monotonic() < deadline:
        for entry in os.listdir(ports):
            try:
                with open(f"{ports}/{entry}/name") as file:
                    if file.read().strip() == name:
                        return os.open(f"/dev/{entry}", os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
        time.sleep(0.01)
    raise TimeoutError(f"there is no virtio-serial port called {name}")


def set_clock_and_seed(seconds: float, seed: bytes) -> None:
    """Set the clock and reseed the kernel's random numbers; a resumed snapshot repeats both."""
    time.clock_settime(time.CLOCK_REALTIME, seconds)
    with open("/dev/urandom", "wb", buffering=0) as random:
        random.write(seed)
        fcntl.ioctl(random, _RNDRESEEDCRNG)


def power_off() -> None:
    """Power off the lab at once, with reboot(2)."""
    _libc.reboot(ctypes.c_int(_REBOOT_POWER_OFF))


def print_diagnosis() -> None:
    """Make the kernel print blocked tasks and all processors' stacks on the serial console."""
    for path, value in (
        ("/proc/sys/kernel/printk", "8"),
        ("/proc/sysrq-trigger", "w"),
        ("/proc/sysrq-trigger", "l"),
    ):
        with contextlib.suppress(OSError), open(path, "w") as file:
            file.write(value)
