# SPDX-License-Identifier: Apache-2.0
"""Solution of chapter 1: a virtual machine monitor that answers its guest.

The value of a port read goes to the data area, `io.data_offset` bytes from the start of `kvm_run`.
KVM moves it into the register itself, when it completes the instruction in the next KVM_RUN.
"""

import mmap

from pykvm import System, abi, address_of, exits
from pykvm.vcpu import Vcpu

RAM_BYTES = 0x10000
CODE_GPA, TEXT_GPA = 0x1000, 0x2000
TEXT = b"Hello from the guest!\n\0"

SERIAL_DATA, SERIAL_STATUS = 0x3F8, 0x3FD
"""Ports: a byte written to the first is sent; the second says whether it can take one."""
CAN_SEND = 0x20
"""Bit of SERIAL_STATUS."""
NO_DEVICE = 0xFF
"""A read of a port that belongs to no device returns all ones."""

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
    "ec"  # in al, dx              the status of the serial port
    "a8 20"  # test al, 0x20       can it take a byte?
    "74 fb"  # jz to in al, dx
    "88 e0"  # mov al, ah
    "b2 f8"  # mov dl, 0xf8
    "ee"  # out dx, al
    "eb ea"  # jmp to lodsb
    "f4"  # hlt
)


def run(vcpu: Vcpu, sent: bytearray) -> None:
    """Run the guest until it halts; append each byte that the serial port sends to `sent`."""
    while (reason := vcpu.run()) == abi.KVM_EXIT_IO:
        io = vcpu.kvm_run.io
        if io.direction == abi.KVM_EXIT_IO_OUT:
            if io.port == SERIAL_DATA:
                sent.append(vcpu.run_area[io.data_offset])
        else:
            value = CAN_SEND if io.port == SERIAL_STATUS else NO_DEVICE
            vcpu.run_area[io.data_offset] = value
    if reason != abi.KVM_EXIT_HLT:
        raise RuntimeError(exits.describe(vcpu.kvm_run))


def main() -> None:
    """Create a virtual machine, run its guest, and print what that has sent."""
    ram = mmap.mmap(-1, RAM_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    ram[CODE_GPA : CODE_GPA + len(CODE)] = CODE
    ram[TEXT_GPA : TEXT_GPA + len(TEXT)] = TEXT
    sent = bytearray()
    with System() as kvm, kvm.create_vm() as vm:
        vm.set_user_memory_region(0, 0, RAM_BYTES, address_of(ram))
        with vm.create_vcpu(0) as vcpu:
            sregs = vcpu.get_sregs()
            sregs.cs.base = sregs.cs.selector = 0
            vcpu.set_sregs(sregs)
            vcpu.set_regs(abi.kvm_regs(rip=CODE_GPA, rflags=2))
            run(vcpu, sent)
    print(sent.decode(), end="")


if __name__ == "__main__":
    main()
