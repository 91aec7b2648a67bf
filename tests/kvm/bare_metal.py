# SPDX-License-Identifier: Apache-2.0
"""Tiny guests without an operating system, for tests of pykvm and of the KVM_RUN loop.

A guest is a listing of a few instructions, one a line: its bytes, two or more spaces, and the
assembly. It has 64 KiB of RAM at address 0 and starts at `CODE_GPA`, either in real mode with all
segments at 0, or in 64-bit mode with the first 4 GiB identity-mapped. `Devices` records the guest's
accesses and answers its reads.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pykvm import System, Vcpu, Vm, abi, address_of
from pyvmm_native import kvm_run

CODE_GPA = 0x1000
HANDLER_GPA = 0x1800
RAM_BYTES = 0x10000
READY_PORT = 0x10
DONE_PORT = 0x11

HALTS = """
    f4              hlt
    eb fd           jmp $-1
"""
READ_PORT_TWICE = """
    31 c0           xor ax, ax
    e5 40           in ax, 0x40
    a3 00 20        mov [0x2000], ax
    e5 40           in ax, 0x40
    a3 02 20        mov [0x2002], ax
    f4              hlt
"""

_PAGE_TABLES_GPA = 0x8000
_PRESENT_WRITABLE = 0b11
_USER, _LARGE_PAGE = 1 << 2, 1 << 7
_PAGE_TABLES_BYTES = 6 * 0x1000
_CR4_OSFXSR, _RFLAGS_IOPL_3 = 1 << 9, 3 << 12
_CR0_PE, _CR0_PG, _CR4_PAE = 1 << 0, 1 << 31, 1 << 5
_EFER_LME, _EFER_LMA = 1 << 8, 1 << 10


def code(listing: str) -> bytes:
    """Return the bytes of a listing: on each line hexadecimal bytes, then the assembly."""
    lines = (line.strip() for line in listing.splitlines())
    return b"".join(bytes.fromhex(re.split(r" {2,}", line)[0]) for line in lines if line)


class GuestDone(Exception):
    """The guest wrote to DONE_PORT."""


class Devices:
    """Records the guest's accesses, such as ("out", port, size, value), and answers reads.

    Reads are answered from `answers`, in order. A write to READY_PORT calls `on_ready`, one to
    DONE_PORT raises GuestDone; neither is recorded.
    """

    def __init__(
        self, answers: Iterable[int] = (), on_ready: Callable[[], object] = lambda: None
    ) -> None:
        self.accesses: list[tuple[str, int, int] | tuple[str, int, int, int]] = []
        self._answers = iter(answers)
        self._on_ready = on_ready

    def pio_read(self, port: int, size: int) -> int:
        self.accesses.append(("in", port, size))
        return next(self._answers)

    def pio_write(self, port: int, size: int, value: int) -> None:
        if port == READY_PORT:
            self._on_ready()
        elif port == DONE_PORT:
            raise GuestDone
        else:
            self.accesses.append(("out", port, size, value))

    def mmio_read(self, gpa: int, size: int) -> int:
        self.accesses.append(("read", gpa, size))
        return next(self._answers)

    def mmio_write(self, gpa: int, size: int, value: int) -> None:
        self.accesses.append(("write", gpa, size, value))


@dataclass
class Guest:
    """A virtual machine with one vCPU, ready to run."""

    vm: Vm
    vcpu: Vcpu
    memory: mmap.mmap

    def run(self, devices: Devices) -> int:
        """Run until an exit that `devices` cannot serve; return its reason."""
        return kvm_run.run(self.vcpu.fileno(), self.vcpu.run_area, devices)

    def words(self, gpa: int, layout: str) -> tuple[int, ...]:
        """Return the integers at `gpa` with a layout of the struct module."""
        return struct.unpack_from(f"<{layout}", self.memory, gpa)


@contextmanager
def guest(
    listing: str, *, long_mode: bool = False, irqchip: bool = False, handler: str = ""
) -> Iterator[Guest]:
    """Create a guest that runs `listing`; `handler` serves every interrupt in real mode."""
    memory = mmap.mmap(-1, RAM_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    _put(memory, CODE_GPA, code(listing))
    if handler:
        _put(memory, HANDLER_GPA, code(handler))
        _put(memory, 0, struct.pack("<HH", HANDLER_GPA, 0) * 256)  # interrupt vector table
    with System() as kvm, kvm.create_vm() as vm:
        vm.set_tss_addr(0xFFFB_D000)
        vm.set_user_memory_region(0, 0, RAM_BYTES, address_of(memory))
        if irqchip:
            vm.create_irqchip()
        with vm.create_vcpu(0) as vcpu:
            vcpu.set_cpuid2(kvm.get_supported_cpuid())
            (enter_long_mode if long_mode else enter_real_mode)(vcpu, memory)
            yield Guest(vm, vcpu, memory)


def enter_real_mode(vcpu: Vcpu, memory: mmap.mmap) -> None:
    """Start at CODE_GPA with all segments at 0 and the stack just below the code."""
    sregs = vcpu.get_sregs()
    for name in ("cs", "ds", "es", "fs", "gs", "ss"):
        segment = getattr(sregs, name)
        segment.selector = segment.base = 0
    vcpu.set_sregs(sregs)
    vcpu.set_regs(abi.kvm_regs(rip=CODE_GPA, rsp=CODE_GPA, rflags=2))


def enter_long_mode(vcpu: Vcpu, memory: mmap.mmap) -> None:
    """Start at CODE_GPA in 64-bit mode, with the first 4 GiB identity-mapped."""
    pml4, pdpt, directories = (_PAGE_TABLES_GPA + n * 0x1000 for n in range(3))
    _put(memory, pml4, struct.pack("<Q", pdpt | _PRESENT_WRITABLE))
    for gib in range(4):
        directory = directories + gib * 0x1000
        _put(memory, pdpt + gib * 8, struct.pack("<Q", directory | _PRESENT_WRITABLE))
        pages = (gib << 30 | n << 21 | _LARGE_PAGE | _PRESENT_WRITABLE for n in range(512))
        _put(memory, directory, struct.pack("<512Q", *pages))
    sregs = vcpu.get_sregs()
    sregs.cr3 = pml4
    sregs.cr4 |= _CR4_PAE
    sregs.cr0 |= _CR0_PE | _CR0_PG
    sregs.efer |= _EFER_LME | _EFER_LMA
    flat = {"base": 0, "limit": 0xFFFF_FFFF, "present": 1, "s": 1, "g": 1}
    sregs.cs = abi.kvm_segment(selector=8, type=11, l=1, **flat)
    sregs.ds = sregs.es = sregs.ss = abi.kvm_segment(selector=16, type=3, db=1, **flat)
    vcpu.set_sregs(sregs)
    vcpu.set_regs(abi.kvm_regs(rip=CODE_GPA, rsp=CODE_GPA, rflags=2))


def enter_ring_3(vcpu: Vcpu, memory: mmap.mmap) -> None:
    """Start at CODE_GPA in 64-bit mode and ring 3, with access to all memory and ports."""
    enter_long_mode(vcpu, memory)
    tables = memory[_PAGE_TABLES_GPA : _PAGE_TABLES_GPA + _PAGE_TABLES_BYTES]
    for at, (entry,) in enumerate(struct.iter_unpack("<Q", tables)):
        if entry:
            _put(memory, _PAGE_TABLES_GPA + at * 8, struct.pack("<Q", entry | _USER))
    sregs = vcpu.get_sregs()
    for name in ("cs", "ds", "es", "ss"):
        segment = getattr(sregs, name)
        segment.selector |= 3
        segment.dpl = 3
    sregs.cr4 |= _CR4_OSFXSR
    vcpu.set_sregs(sregs)
    vcpu.set_regs(abi.kvm_regs(rip=CODE_GPA, rsp=CODE_GPA, rflags=_RFLAGS_IOPL_3 | 2))


def _put(memory: mmap.mmap, gpa: int, data: bytes) -> None:
    memory[gpa : gpa + len(data)] = data
