# SPDX-License-Identifier: Apache-2.0
"""Refusing a system call to this process, as a container's seccomp filter or an old kernel does.

It cannot be undone, so it is for child processes.
"""

from __future__ import annotations

import ctypes
import struct

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2  # <linux/prctl.h>, <linux/seccomp.h>
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_RET_ERRNO, SECCOMP_RET_ALLOW = 0x0005_0000, 0x7FFF_0000
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 6  # classic BPF, 32 bits, with a constant


def refuse(call: int, error: int) -> None:
    """Have the system call number `call` fail with the errno `error` from now on."""
    instructions = [
        (LOAD, 0, 0, 0),  # the call's number
        (JUMP_IF_EQUAL, 0, 1, call),
        (RETURN, 0, 0, SECCOMP_RET_ERRNO | error),
        (RETURN, 0, 0, SECCOMP_RET_ALLOW),
    ]
    code = b"".join(struct.pack("<HBBI", *each) for each in instructions)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("<HxxxxxxQ", len(instructions), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0
    ):
        raise OSError(ctypes.get_errno(), "seccomp")
