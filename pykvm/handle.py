# SPDX-License-Identifier: Apache-2.0
"""A KVM file descriptor with an owner, and the error that its ioctls raise.

KVM hands out file descriptors in a tree: /dev/kvm creates virtual machines, a virtual machine
creates vCPUs. Each is a `KvmHandle`, which closes its descriptor once, however often `close` is
called.
"""

from __future__ import annotations

import ctypes
import errno as errno_names
import os
from types import TracebackType
from typing import Any, Self

from pykvm import ioctls

_libc = ctypes.CDLL(None, use_errno=True)
# The argument is an address or a plain integer up to 64 bits wide. fcntl.ioctl() would do for
# the first, but it takes integers of at most 31 bits, too few for a guest-physical address.
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
_libc.ioctl.restype = ctypes.c_int
_PASSED_BY_ADDRESS = (ctypes.Structure, ctypes.c_uint64)


class KvmError(OSError):
    """A KVM request failed.

    `request` names it as the kernel does ("KVM_CREATE_VM"), `errno` and `strerror` are those of
    any OSError.
    """

    def __init__(self, request: str, errno: int) -> None:
        self.request = request
        super().__init__(errno, os.strerror(errno))

    def __str__(self) -> str:
        code = self.errno or 0
        return f"{self.request}: {self.strerror} ({errno_names.errorcode.get(code, code)})"

    def __reduce__(self) -> tuple[type[KvmError], tuple[str, int]]:
        return type(self), (self.request, self.errno or 0)


class KvmHandle:
    """Owns one KVM file descriptor; a context manager that closes it."""

    def __init__(self, fd: int) -> None:
        """Take ownership of the open file descriptor `fd`."""
        self._fd = fd

    def fileno(self) -> int:
        """Return the file descriptor; raises ValueError after `close`."""
        if self._fd < 0:
            raise ValueError(f"{type(self).__name__} is closed")
        return self._fd

    @property
    def closed(self) -> bool:
        """True once `close` was called."""
        return self._fd < 0

    def close(self) -> None:
        """Close the file descriptor; does nothing the second time."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # A constructor that failed has set no descriptor.
        if getattr(self, "_fd", -1) >= 0:
            self.close()

    def ioctl(self, request: int, argument: Any = 0) -> int:
        """Make one request and return its result, which is never negative.

        `argument` is an integer or a ctypes structure, which is passed by address. A request
        that a signal interrupted is made again, after Python's own signal handlers ran.
        Raises KvmError.
        """
        while True:
            result = self._ioctl_once(request, argument)
            if result >= 0:
                return result
            if result != -errno_names.EINTR:
                raise KvmError(ioctls.name_of(request), -result)

    def _ioctl_once(self, request: int, argument: Any = 0) -> int:
        """Make one request; return its result, or the negative error number."""
        if isinstance(argument, _PASSED_BY_ADDRESS):
            argument = ctypes.byref(argument)
        result: int = _libc.ioctl(self.fileno(), request, argument)
        return result if result >= 0 else -ctypes.get_errno()
