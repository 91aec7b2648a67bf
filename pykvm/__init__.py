# SPDX-License-Identifier: Apache-2.0
"""KVM from Python: thin ctypes bindings to the ioctls of /dev/kvm.

Three classes own the file descriptors that KVM hands out: `System` (/dev/kvm) creates a `Vm`, a
`Vm` creates each `Vcpu`. Their methods are the ioctls, in lower case. Structures and constants are
in `abi` by their kernel names, request numbers in `ioctls`, exit reasons in words in `exits`. A
request that fails raises `KvmError`. The package needs nothing but Python, so this is a complete
virtual machine monitor; its guest writes a greeting to the serial port, byte by byte, and halts:

    import mmap
    from pykvm import System, abi, address_of, exits

    GUEST_CODE = bytes.fromhex(
        "ba f8 03"  #    mov dx, 0x3f8
        "be 10 00"  #    mov si, 0x10
        "ac"  #    next: lodsb
        "84 c0"  #       test al, al
        "74 03"  #       jz done
        "ee"  #          out dx, al
        "eb f8"  #       jmp next
        "f4"  #    done: hlt
    ).ljust(16, b"\\x90") + b"Hello from ring 0!\\n\\0"

    memory = mmap.mmap(-1, 0x1000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[: len(GUEST_CODE)] = GUEST_CODE
    with System() as kvm, kvm.create_vm() as vm:
        vm.set_user_memory_region(
            slot=0, guest_phys_addr=0x1000, memory_size=0x1000, userspace_addr=address_of(memory)
        )
        with vm.create_vcpu(0) as vcpu:
            sregs = vcpu.get_sregs()
            for segment in (sregs.cs, sregs.ds):  # real mode: base = selector * 16
                segment.selector, segment.base = 0x100, 0x1000
            vcpu.set_sregs(sregs)
            vcpu.set_regs(abi.kvm_regs(rip=0, rflags=2))
            while (reason := vcpu.run()) == abi.KVM_EXIT_IO:
                io = vcpu.kvm_run.io
                print(chr(vcpu.run_area[io.data_offset]), end="")
            if reason != abi.KVM_EXIT_HLT:
                raise SystemExit(exits.describe(vcpu.kvm_run))
"""

from pykvm import abi, exits, ioctls
from pykvm.handle import KvmError, KvmHandle
from pykvm.system import System
from pykvm.vcpu import Vcpu
from pykvm.vm import Vm, address_of, irqchip_route, msi_route

__all__ = [
    "KvmError",
    "KvmHandle",
    "System",
    "Vcpu",
    "Vm",
    "abi",
    "address_of",
    "exits",
    "ioctls",
    "irqchip_route",
    "msi_route",
]
