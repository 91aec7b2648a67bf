# SPDX-License-Identifier: Apache-2.0
"""Exit reasons in words: the contents of `kvm_run` after KVM_RUN, for messages and logs.

Documentation/virt/kvm/api.rst, section 5, "The kvm_run structure", defines each exit.
"""

from __future__ import annotations

from pykvm import abi


def _names(prefix: str, *but: str) -> dict[int, str]:
    return {
        value: name
        for name, value in vars(abi).items()
        if name.startswith(prefix) and name not in but
    }


EXIT_NAMES = _names("KVM_EXIT_", "KVM_EXIT_IO_IN", "KVM_EXIT_IO_OUT")
"""exit_reason → its kernel name."""

INTERNAL_ERROR_NAMES = _names(
    "KVM_INTERNAL_ERROR_", "KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES"
)
"""internal.suberror → its kernel name."""

SYSTEM_EVENT_NAMES = _names("KVM_SYSTEM_EVENT_")
"""system_event.type → its kernel name."""


def exit_name(exit_reason: int) -> str:
    """Return the kernel's name of an exit reason, "KVM_EXIT_HLT"."""
    return EXIT_NAMES.get(exit_reason, f"exit reason {exit_reason}")


def describe(run: abi.kvm_run) -> str:
    """Return one line with the reason why KVM_RUN returned."""
    name = exit_name(run.exit_reason)
    detail = _DETAILS.get(run.exit_reason)
    return f"{name}: {detail(run)}" if detail else name


def _unknown(run: abi.kvm_run) -> str:
    return f"hardware exit reason 0x{run.hw.hardware_exit_reason:x}"


def _exception(run: abi.kvm_run) -> str:
    return f"exception {run.ex.exception}, error code 0x{run.ex.error_code:x}"


def _io(run: abi.kvm_run) -> str:
    io = run.io
    direction = "write to" if io.direction == abi.KVM_EXIT_IO_OUT else "read from"
    return f"{direction} port 0x{io.port:x}, {io.count} times {io.size} bytes"


def _mmio(run: abi.kvm_run) -> str:
    mmio = run.mmio
    if not mmio.is_write:
        return f"read of {mmio.len} bytes at 0x{mmio.phys_addr:x}"
    value = int.from_bytes(bytes(mmio.data)[: mmio.len], "little")
    return f"write of 0x{value:x}, {mmio.len} bytes, at 0x{mmio.phys_addr:x}"


def _shutdown(run: abi.kvm_run) -> str:
    return "the guest faulted while handling a double fault (triple fault)"


def _fail_entry(run: abi.kvm_run) -> str:
    entry = run.fail_entry
    return (
        f"the processor refused the guest's state, hardware reason "
        f"0x{entry.hardware_entry_failure_reason:x}, on host CPU {entry.cpu}"
    )


def _internal_error(run: abi.kvm_run) -> str:
    internal = run.internal
    name = INTERNAL_ERROR_NAMES.get(internal.suberror, f"suberror {internal.suberror}")
    if internal.suberror == abi.KVM_INTERNAL_ERROR_EMULATION:
        instruction = _failed_instruction(run)
        if instruction:
            return f"{name}, KVM cannot emulate an instruction, bytes {instruction}"
    words = internal.data[: min(internal.ndata, len(internal.data))]
    return ", ".join([name, *(f"0x{word:x}" for word in words)])


def _failed_instruction(run: abi.kvm_run) -> str:
    """Return the bytes of the instruction that KVM could not emulate, in hexadecimal, or ""."""
    failure = run.emulation_failure
    # ndata counts the words after itself: one of flags, two of instruction size and bytes.
    if failure.ndata < 3:
        return ""
    if not failure.flags & abi.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES:
        return ""
    return bytes(failure.insn_bytes)[: failure.insn_size].hex(" ")


def _system_event(run: abi.kvm_run) -> str:
    event = run.system_event
    name = SYSTEM_EVENT_NAMES.get(event.type, f"type {event.type}")
    words = event.data[: min(event.ndata, len(event.data))]
    return ", ".join([name, *(f"0x{word:x}" for word in words)])


def _msr(run: abi.kvm_run) -> str:
    return f"MSR 0x{run.msr.index:x}"


_DETAILS = {
    abi.KVM_EXIT_UNKNOWN: _unknown,
    abi.KVM_EXIT_EXCEPTION: _exception,
    abi.KVM_EXIT_IO: _io,
    abi.KVM_EXIT_MMIO: _mmio,
    abi.KVM_EXIT_SHUTDOWN: _shutdown,
    abi.KVM_EXIT_FAIL_ENTRY: _fail_entry,
    abi.KVM_EXIT_INTERNAL_ERROR: _internal_error,
    abi.KVM_EXIT_SYSTEM_EVENT: _system_event,
    abi.KVM_EXIT_X86_RDMSR: _msr,
    abi.KVM_EXIT_X86_WRMSR: _msr,
}
