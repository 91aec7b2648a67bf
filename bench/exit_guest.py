# SPDX-License-Identifier: Apache-2.0
"""A guest of a few instructions that repeats one kind of register access.

It runs in ring 3 with access to all I/O ports and the first 2 MiB identity-mapped, which every KVM
supports at full speed, even one without hardware virtualization. RAM ends at 64 KiB; beyond is
device memory. A program counts ECX down from the number of accesses to 1, sums the values it reads,
stores the sum in RAM and writes to DONE_PORT.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pykvm import System, Vcpu, Vm, abi, address_of

DONE_PORT = 0xD0
DEVICE_GPA = 0x100000
DEVICE_BYTES = 0x100000

_RAM_BYTES = 0x10000
_PML4, _PDPT, _PD, _CODE, _SUM = 0x2000, 0x3000, 0x4000, 0x8000, 0x9000
_PRESENT_WRITE_USER, _LARGE_PAGE = 7, 0x80
_CR0_PG_WP_NE_ET_PE, _CR4_PAE, _EFER_LMA_LME_SCE = 0x80010031, 0x20, 0x501
_USER_SS, _USER_CS, _RFLAGS_IOPL_3 = 0x1B, 0x23, 0x3002


@dataclass(frozen=True)
class RegisterAccess:
    """One kind of access: its instructions, and the port (in DX) or address (in RSI)."""

    code: bytes
    address: int

    def __str__(self) -> str:
        return f"{self.code.hex(' ')} at {self.address:#x}"


def port_read(port: int) -> RegisterAccess:
    return RegisterAccess(bytes.fromhex("ec"), port)  # in al, dx


def port_write(port: int) -> RegisterAccess:
    return RegisterAccess(bytes.fromhex("88c8 ee"), port)  # mov al, cl; out dx, al


def memory_read(gpa: int) -> RegisterAccess:
    return RegisterAccess(bytes.fromhex("8b06"), gpa)  # mov eax, [rsi]


def memory_write(gpa: int) -> RegisterAccess:
    return RegisterAccess(bytes.fromhex("890e"), gpa)  # mov [rsi], ecx


def with_pause(access: RegisterAccess, loops: int) -> RegisterAccess:
    """Return the access preceded by a loop of two instructions."""
    pause = b"\x41\xb8" + struct.pack("<I", loops)  # mov r8d, loops
    return RegisterAccess(
        pause + bytes.fromhex("41ffc8 75fb") + access.code, access.address
    )  # dec; jnz


class ExitGuest:
    """The virtual machine; `load` a program, then run the vCPU until it writes to DONE_PORT."""

    def __init__(self, vm: Vm, vcpu: Vcpu, memory: mmap.mmap) -> None:
        self.vm = vm
        self.vcpu = vcpu
        self._memory = memory
        directory = struct.pack("<Q", _LARGE_PAGE | _PRESENT_WRITE_USER)
        self._put(_PML4, struct.pack("<Q", _PDPT | _PRESENT_WRITE_USER))
        self._put(_PDPT, struct.pack("<Q", _PD | _PRESENT_WRITE_USER))
        self._put(_PD, directory)
        _enter_ring_3(vcpu)

    def load(self, access: RegisterAccess, count: int) -> None:
        """Load a program of `count` accesses and point the vCPU at its start."""
        loop = access.code + bytes.fromhex("4801c3 ffc9")  # add rbx, rax; dec ecx
        loop += b"\x75" + struct.pack("<b", -len(loop) - 2)  # jnz to the start
        program = loop + bytes.fromhex("48891c25") + struct.pack("<I", _SUM)  # mov [_SUM], rbx
        self._put(_CODE, program + bytes([0xE6, DONE_PORT]))  # out DONE_PORT, al
        self._finish_last_access()
        regs = abi.kvm_regs(rip=_CODE, rflags=_RFLAGS_IOPL_3, rcx=count)
        regs.rdx = regs.rsi = access.address
        self.vcpu.set_regs(regs)

    def _finish_last_access(self) -> None:
        """Complete the last access, for which KVM_RUN must be called again."""
        self.vcpu.kvm_run.immediate_exit = 1
        self.vcpu.run()
        self.vcpu.kvm_run.immediate_exit = 0

    @property
    def sum(self) -> int:
        """Sum of all values that the last program read."""
        return int(struct.unpack_from("<Q", self._memory, _SUM)[0])

    def _put(self, gpa: int, data: bytes) -> None:
        self._memory[gpa : gpa + len(data)] = data


@contextmanager
def exit_guest() -> Iterator[ExitGuest]:
    """Create the virtual machine; it is closed with the block."""
    memory = mmap.mmap(-1, _RAM_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with System() as kvm, kvm.create_vm() as vm:
        vm.set_tss_addr(0xFFFB_D000)
        vm.set_user_memory_region(0, 0, _RAM_BYTES, address_of(memory))
        with vm.create_vcpu(0) as vcpu:
            vcpu.set_cpuid2(kvm.get_supported_cpuid())
            yield ExitGuest(vm, vcpu, memory)


def _enter_ring_3(vcpu: Vcpu) -> None:
    sregs = vcpu.get_sregs()
    sregs.cr0, sregs.cr3, sregs.cr4 = _CR0_PG_WP_NE_ET_PE, _PML4, _CR4_PAE
    sregs.efer = _EFER_LMA_LME_SCE
    flat = {"limit": 0xFFFFFFFF, "present": 1, "s": 1, "g": 1, "dpl": 3}
    sregs.cs = abi.kvm_segment(selector=_USER_CS, type=11, l=1, **flat)
    sregs.ss = sregs.ds = sregs.es = abi.kvm_segment(selector=_USER_SS, type=3, db=1, **flat)
    vcpu.set_sregs(sregs)
