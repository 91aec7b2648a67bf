# SPDX-License-Identifier: Apache-2.0
"""Probe whether this host's KVM can run Linux, by running a few guest instructions on it.

A /dev/kvm that opens and serves every ioctl may still be useless: where KVM itself runs without
hardware support (nested clouds, containers on PVM), ring 0 is interpreted at a thousandth of the
speed, and SYSCALL may enter the kernel at the wrong privilege level, so that Linux crashes at its
first system call. The probe's guest has 64 KiB of memory in one 2 MiB identity-mapped page, and
reports two tests to the host by port writes:

1. a counted loop in ring 0, whose processor time gives instructions per second;
2. SYSCALL from ring 3 (AMD64 Architecture Programmer's Manual, volume 2, 6.1.1), which must
   arrive at LSTAR in ring 0 with the code segment that STAR names.

A periodic timer signal ends a guest that reports neither, so the probe takes under a second.
"""

from __future__ import annotations

import errno
import functools
import mmap
import os
import signal
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import NamedTuple

from pykvm import KvmError, System, Vcpu, Vm, abi, address_of, exits
from pyvmm.errors import ThreadNotStarted
from pyvmm.machine.errors import raise_if_too_many_files
from pyvmm.machine.kvm_verdict import KVM_DEVICE

MIN_RING0_INSTRUCTIONS_PER_SECOND = 20e6
"""Interpreted ring 0 reaches about 2 million, the emulated lab 250 million, hardware thousands."""

_TIME_LIMIT_S = 0.3
_LOOP_COUNT = 10_000_000
_INSTRUCTIONS_PER_LOOP = 2

_MEMORY_BYTES = 0x10000
_GDT, _PML4, _PDPT, _PD, _STACK_TOP = 0x1000, 0x2000, 0x3000, 0x4000, 0x8000
_LOOP, _USER, _LSTAR = 0x9000, 0xA000, 0xB000
_PORT_BEGIN, _PORT_END, _PORT_SYSCALL = 0x10, 0x11, 0x12
_CODE = {
    _LOOP: bytes.fromhex("e610 ffc9 75fc e611 f4"),  # out 0x10; dec ecx; jnz -4; out 0x11; hlt
    _USER: bytes.fromhex("0f05 0f0b"),  # syscall; ud2
    _LSTAR: bytes.fromhex("e612 f4"),  # out 0x12; hlt
}
_KERNEL_CS, _KERNEL_SS, _USER_SS, _USER_CS = 0x08, 0x10, 0x1B, 0x23
_MSR_STAR, _MSR_LSTAR, _MSR_SFMASK = 0xC0000081, 0xC0000082, 0xC0000084
_CR0_PG_WP_NE_ET_PE, _CR4_PAE, _EFER_LMA_LME_SCE = 0x80010031, 0x20, 0x501
_PRESENT_WRITE_USER, _LARGE = 7, 0x80


class Verdict(Enum):
    """The result of a probe."""

    MISSING = "missing"
    UNREADABLE = "unreadable"
    UNFIT = "unfit"
    FIT = "fit"


class KvmFitness(NamedTuple):
    """A verdict with its reason and measurements, which are None if the probe ended before them."""

    verdict: Verdict
    reason: str
    ring0_instructions_per_second: float | None = None
    syscall_arrives: bool | None = None

    @property
    def fit(self) -> bool:
        return self.verdict is Verdict.FIT


@functools.cache
def probe_host_kvm() -> KvmFitness:
    """Return the fitness of /dev/kvm, probed once per process; main thread only."""
    return probe(KVM_DEVICE)


def probe(device: str) -> KvmFitness:
    """Return the fitness of the KVM behind `device`; a faulty KVM is unfit, not an error.

    Raises `TooManyOpenFiles` and `ThreadNotStarted`.
    """
    if not os.path.exists(device):
        return KvmFitness(Verdict.MISSING, f"there is no {device}")
    try:
        system = System(device)
    except KvmError as error:
        raise_if_too_many_files(error)
        if error.errno in (errno.EACCES, errno.EPERM):
            return KvmFitness(Verdict.UNREADABLE, f"this user has no permission to open {device}")
        return KvmFitness(Verdict.MISSING, f"{device} cannot be opened: {error.strerror}")
    try:
        with system, system.create_vm() as vm, _periodic_signal():
            return _judge(*_measure(system, vm))
    except KvmError as error:
        raise_if_too_many_files(error)
        if error.errno == errno.EAGAIN:  # KVM starts a thread for a VM
            raise ThreadNotStarted("the host lets this process start no more threads") from error
        return KvmFitness(Verdict.UNFIT, f"it cannot run a simple guest: {error}")


def _judge(speed: float | None, syscall_problem: str | None, stopped: str) -> KvmFitness:
    arrives = None if speed is None else syscall_problem is None
    if speed is None:
        return KvmFitness(Verdict.UNFIT, f"a loop in ring 0 ended with {stopped}")
    if syscall_problem is not None:
        reason = f"SYSCALL from ring 3 {syscall_problem}"
        return KvmFitness(Verdict.UNFIT, reason, speed, arrives)
    if speed < MIN_RING0_INSTRUCTIONS_PER_SECOND:
        reason = f"ring 0 runs only {speed / 1e6:.1f} million instructions per second"
        return KvmFitness(Verdict.UNFIT, reason, speed, arrives)
    return KvmFitness(Verdict.FIT, "it runs ring 0 and system calls as Linux needs", speed, arrives)


def _measure(system: System, vm: Vm) -> tuple[float | None, str | None, str]:
    """Return ring 0 instructions per second, the problem of SYSCALL, and the end of the loop."""
    memory = mmap.mmap(-1, _MEMORY_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    _write_guest(memory)
    vm.set_tss_addr(0xFFFB_D000)
    vm.set_user_memory_region(0, 0, _MEMORY_BYTES, address_of(memory))
    with vm.create_vcpu(0) as vcpu:
        vcpu.set_cpuid2(system.get_supported_cpuid())
        vcpu.set_msrs({_MSR_STAR: (_KERNEL_SS << 48) | (_KERNEL_CS << 32), _MSR_LSTAR: _LSTAR})
        vcpu.set_msrs({_MSR_SFMASK: 0})
        speed, stopped = _loop_speed(vcpu)
        return speed, None if speed is None else _syscall_problem(vcpu), stopped


def _write_guest(memory: mmap.mmap) -> None:
    """Write the GDT, page tables for one 2 MiB identity page, and the code."""
    memory[_GDT : _GDT + 40] = struct.pack(
        "<5Q", 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF
    )
    memory[_PML4 : _PML4 + 8] = struct.pack("<Q", _PDPT | _PRESENT_WRITE_USER)
    memory[_PDPT : _PDPT + 8] = struct.pack("<Q", _PD | _PRESENT_WRITE_USER)
    memory[_PD : _PD + 8] = struct.pack("<Q", _LARGE | _PRESENT_WRITE_USER)
    for gpa, code in _CODE.items():
        memory[gpa : gpa + len(code)] = code


def _enter(vcpu: Vcpu, *, ring: int, rip: int) -> None:
    """Put the vCPU into 64-bit mode in `ring` at `rip`."""
    sregs = vcpu.get_sregs()
    sregs.cr0, sregs.cr3, sregs.cr4 = _CR0_PG_WP_NE_ET_PE, _PML4, _CR4_PAE
    sregs.efer = _EFER_LMA_LME_SCE
    sregs.gdt.base, sregs.gdt.limit = _GDT, 39
    code = abi.kvm_segment(limit=0xFFFFFFFF, type=11, present=1, s=1, l=1, g=1, dpl=ring)
    data = abi.kvm_segment(limit=0xFFFFFFFF, type=3, present=1, s=1, db=1, g=1, dpl=ring)
    code.selector = _USER_CS if ring else _KERNEL_CS
    data.selector = _USER_SS if ring else _KERNEL_SS
    sregs.cs = code
    sregs.ss = sregs.ds = sregs.es = data
    vcpu.set_sregs(sregs)
    vcpu.set_regs(abi.kvm_regs(rip=rip, rsp=_STACK_TOP, rcx=_LOOP_COUNT, rflags=2))


def _loop_speed(vcpu: Vcpu) -> tuple[float | None, str]:
    _enter(vcpu, ring=0, rip=_LOOP)
    if not _reaches_port(vcpu, _PORT_BEGIN):
        return None, exits.describe(vcpu.kvm_run)
    begin = time.thread_time()
    arrived = _reaches_port(vcpu, _PORT_END)
    seconds = max(time.thread_time() - begin, 1e-6)
    interrupted = vcpu.kvm_run.exit_reason == abi.KVM_EXIT_INTR
    if not arrived and not interrupted:
        return None, exits.describe(vcpu.kvm_run)
    loops = _LOOP_COUNT - (vcpu.get_regs().rcx & 0xFFFFFFFF)
    return loops * _INSTRUCTIONS_PER_LOOP / seconds, "the end of the loop"


def _syscall_problem(vcpu: Vcpu) -> str | None:
    """Return the difference of SYSCALL from what Linux expects, or None."""
    _enter(vcpu, ring=3, rip=_USER)
    if not _reaches_port(vcpu, _PORT_SYSCALL):
        return f"does not arrive in ring 0 ({exits.exit_name(vcpu.kvm_run.exit_reason)})"
    sregs = vcpu.get_sregs()
    if sregs.ss.dpl != 0 or sregs.cs.dpl != 0 or sregs.cs.selector != _KERNEL_CS:
        return f"arrives with CS {sregs.cs.selector:#x} in ring {sregs.ss.dpl}"
    return None


def _reaches_port(vcpu: Vcpu, port: int) -> bool:
    """Run the guest; return True if it writes to `port`, False if it stops or takes too long."""
    deadline = time.monotonic() + _TIME_LIMIT_S
    while (reason := vcpu.run()) == abi.KVM_EXIT_INTR:
        if time.monotonic() > deadline:
            return False
    return bool(reason == abi.KVM_EXIT_IO and vcpu.kvm_run.io.port == port)


@contextmanager
def _periodic_signal() -> Iterator[None]:
    """Interrupt KVM_RUN by SIGALRM every 50 ms; restore the handler and timer afterwards."""
    handler = signal.signal(signal.SIGALRM, lambda *_: None)
    begin = time.monotonic()
    remaining, interval = signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if remaining:
            left = max(remaining - (time.monotonic() - begin), 1e-3)
            signal.setitimer(signal.ITIMER_REAL, left, interval)
