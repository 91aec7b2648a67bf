# SPDX-License-Identifier: Apache-2.0
"""The guest of chapter 1, and a virtual machine with one vCPU that is ready to run it."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager

from pykvm import System, abi, address_of
from pykvm.vcpu import Vcpu

RAM_BYTES = 0x10000
CODE_GPA, TEXT_GPA = 0x1000, 0x2000

CODE = bytes.fromhex(
    "ba fd 02"  # mov dx, 0x2fd    a port without a device
    "ec"  # in al, dx
    "3c ff"  # cmp al, 0xff
    "75 19"  # jne to hlt
    "be 00 20"  # mov si, 0x2000
    "ac"  # lodsb                  al = the byte at si; si += 1
    "84 c0"  # test al, al
    "74 11"  # jz to hlt           after the last byte
    "88 c4"  # mov ah, al
    "ba fd 03"  # mov dx, 0x3fd
    "ec"  # in al, dx              the line status
    "a8 20"  # test al, 0x20       can the port take a byte?
    "74 fb"  # jz to in al, dx
    "88 e0"  # mov al, ah
    "b2 f8"  # mov dl, 0xf8
    "ee"  # out dx, al
    "eb ea"  # jmp to lodsb
    "f4"  # hlt
)


@contextmanager
def ready_vcpu(text: bytes, code: bytes = CODE) -> Iterator[Vcpu]:
    """Yield a vCPU about to execute `code`, for which `text`, with a zero, is at `TEXT_GPA`."""
    ram = mmap.mmap(-1, RAM_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    ram[CODE_GPA : CODE_GPA + len(code)] = code
    ram[TEXT_GPA : TEXT_GPA + len(text)] = text
    with System() as kvm, kvm.create_vm() as vm:
        vm.set_user_memory_region(0, 0, RAM_BYTES, address_of(ram))
        with vm.create_vcpu(0) as vcpu:
            sregs = vcpu.get_sregs()
            sregs.cs.base = sregs.cs.selector = 0
            vcpu.set_sregs(sregs)
            vcpu.set_regs(abi.kvm_regs(rip=CODE_GPA, rflags=2))
            yield vcpu
