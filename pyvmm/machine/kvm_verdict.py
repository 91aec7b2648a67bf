# SPDX-License-Identifier: Apache-2.0
"""Remember that this host's KVM is fit, so that only its first guest waits for a probe.

`pyvmm.machine.kvm_probe` runs a small virtual machine, which takes as long as a good part of a
start. Its verdict holds until another KVM serves /dev/kvm. So a file in the cache has the
identity of the KVM that was found fit: the boot of the host, the release of its kernel, and the
device, which is created again whenever KVM's modules are loaded. Where the device was made by hand,
as in a container, its entry in sysfs changes then. Only fitness is remembered: any other verdict
is found by a probe each time, as are its reason and measurements.

The file is trusted if it is a regular file of this user that no other user may write, and has
exactly the contents that `record_fit` would write now. In any other case KVM is probed.

A KVM that was fit may still refuse a guest: another hypervisor has taken the processor, or a
container's rules have changed. Then it is probed again, and `forget_fit` removes the file.
"""

from __future__ import annotations

import contextlib
import os
import stat

from pyvmm.cache.directory import cache_dir, cache_root
from pyvmm.errors import UserError
from pyvmm.files.replacement import ReplacementFile, pwrite_all

KVM_DEVICE = "/dev/kvm"
_KIND, _NAME = "kvm", "fit"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
"""It changes with every boot of the host."""
_SYSFS = "/sys/devices/virtual/misc/kvm"


def known_fit() -> bool:
    """Return whether a probe has found the present KVM fit, and this user may use it."""
    with contextlib.suppress(OSError, UserError):
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(cache_root() / _KIND / _NAME, flags)
        try:
            expected = _identity()
            trusted = _is_private(os.fstat(fd)) and os.read(fd, len(expected) + 1) == expected
        finally:
            os.close(fd)
        return trusted and os.access(KVM_DEVICE, os.R_OK | os.W_OK)
    return False


def record_fit() -> None:
    """Remember that the present KVM is fit, where the cache can be written."""
    with (
        contextlib.suppress(OSError, UserError),
        ReplacementFile(cache_dir(_KIND) / _NAME) as file,
    ):
        pwrite_all(file.fd, _identity())
        file.commit()


def forget_fit() -> None:
    """Remember nothing: the present KVM is not fit."""
    with contextlib.suppress(OSError, UserError):
        (cache_root() / _KIND / _NAME).unlink()


def _is_private(status: os.stat_result) -> bool:
    others_may_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not others_may_write


def _identity() -> bytes:
    """Return the identity of the KVM behind `KVM_DEVICE`. Raises OSError."""
    device = os.stat(KVM_DEVICE)
    with open(_BOOT_ID) as file:
        boot_id = file.read().strip()
    try:
        entry = os.stat(_SYSFS).st_ino
    except FileNotFoundError:
        entry = 0
    numbers = (device.st_rdev, device.st_dev, device.st_ino, device.st_ctime_ns, entry)
    return f"{boot_id} {os.uname().release} {' '.join(map(str, numbers))}\n".encode()
