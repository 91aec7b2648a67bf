# SPDX-License-Identifier: Apache-2.0
"""/dev/kvm: the capabilities of this machine's KVM, and the creation of virtual machines.

Implements the system ioctls of Documentation/virt/kvm/api.rst, section 4. Each method is one
ioctl, named after it in lower case.
"""

from __future__ import annotations

import errno
import os

from pykvm import abi, ioctls
from pykvm.handle import KvmError, KvmHandle
from pykvm.vm import Vm

_FIRST_CPUID_ENTRIES = 128


class System(KvmHandle):
    """An open /dev/kvm."""

    def __init__(self, path: str = "/dev/kvm") -> None:
        """Open the device at `path`; raises KvmError if it is missing or inaccessible."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise KvmError(f"open {path}", error.errno or 0) from None
        super().__init__(fd)

    def get_api_version(self) -> int:
        """KVM_GET_API_VERSION: 12 (KVM_API_VERSION) on every KVM since Linux 2.6.22."""
        return self.ioctl(ioctls.KVM_GET_API_VERSION)

    def check_extension(self, cap: int) -> int:
        """KVM_CHECK_EXTENSION: 0 if KVM_CAP_* `cap` is missing, else a positive number."""
        return self.ioctl(ioctls.KVM_CHECK_EXTENSION, cap)

    def get_vcpu_mmap_size(self) -> int:
        """KVM_GET_VCPU_MMAP_SIZE: bytes of the area that a vCPU shares with the kernel."""
        return self.ioctl(ioctls.KVM_GET_VCPU_MMAP_SIZE)

    def create_vm(self, machine_type: int = 0) -> Vm:
        """KVM_CREATE_VM: an empty virtual machine; `machine_type` is 0 on x86."""
        mmap_size_bytes = self.get_vcpu_mmap_size()
        return Vm(self.ioctl(ioctls.KVM_CREATE_VM, machine_type), mmap_size_bytes)

    def get_supported_cpuid(self) -> abi.kvm_cpuid2:
        """KVM_GET_SUPPORTED_CPUID: the CPUID leaves that a guest may have.

        The result can be passed to `Vcpu.set_cpuid2` as it is, or after changes. KVM adds its own
        leaves from 0x40000000 to those of the processor.
        """
        entries = _FIRST_CPUID_ENTRIES
        while True:
            table = abi.sized(abi.kvm_cpuid2, entries)(nent=entries)
            try:
                self.ioctl(ioctls.KVM_GET_SUPPORTED_CPUID, table)
            except KvmError as error:
                if error.errno != errno.E2BIG:
                    raise
                entries *= 2  # KVM does not report their number, only that they did not fit.
            else:
                return abi.cpuid2(table.entries[: table.nent])

    def get_msr_index_list(self) -> list[int]:
        """KVM_GET_MSR_INDEX_LIST: indices of the MSRs that make up a guest's state."""
        table = abi.msr_list(0)
        try:
            self.ioctl(ioctls.KVM_GET_MSR_INDEX_LIST, table)
        except KvmError as error:
            if error.errno != errno.E2BIG:
                raise
            table = abi.msr_list(table.nmsrs)  # KVM has stored the number needed.
            self.ioctl(ioctls.KVM_GET_MSR_INDEX_LIST, table)
        return list(table.indices)
