# SPDX-License-Identifier: Apache-2.0
"""Commands on the VM as a whole and on the balloon's size, as in QEMU.

One differs on purpose: `balloon` refuses a size larger than the guest's RAM.
"""

from __future__ import annotations

from typing import Any

from pyvmm.qmp import messages as qmp
from pyvmm.qmp.command import Command, Parameter
from pyvmm.qmp.messages import QmpError
from pyvmm.qmp.vm_control import VmControl


def qmp_capabilities(vm: VmControl, enable: list[Any] | None = None) -> dict[str, Any]:
    """End the negotiation of capabilities; every session begins with this command.

    Arguments:
        enable: capabilities to enable; only an empty list is accepted, as the greeting offers none
    Errors:
        CommandNotFound: negotiation is already complete; or another command comes first
        GenericError: `enable` names a capability
    In QEMU:
        the same; QEMU's greeting offers `oob`
    """
    if enable:
        raise QmpError(f"Parameter 'enable' does not accept value '{enable[0]}'")
    return {}


def query_version(vm: VmControl) -> dict[str, Any]:
    """Return the version of pyvmm, as the greeting has it.

    Returns:
        qemu.major: the version has three numbers; the member is called "qemu" in every server
        qemu.minor: the second number
        qemu.micro: the third number
        package: "pyvmm" and the version
    In QEMU:
        the same
    """
    return qmp.version()


def query_status(vm: VmControl) -> dict[str, Any]:
    """Return the run state of the VM.

    Returns:
        status: `running`; `paused`; `finish-migrate`, for the switchover of a migration;
            `postmigrate`, after it; `shutdown`; or `guest-panicked`
        running: true in the status `running` only
    In QEMU:
        the same, with further states
    """
    return {"status": vm.status, "running": vm.status == "running"}


def query_memory_size_summary(vm: VmControl) -> dict[str, int]:
    """Return the size of the guest's RAM.

    Returns:
        base-memory: RAM in bytes, whatever the balloon's size
    In QEMU:
        the same; QEMU adds `plugged-memory` if memory can be hot-plugged
    """
    return {"base-memory": vm.ram_bytes}


def query_memory_backing(vm: VmControl) -> dict[str, Any]:
    """Return the memory of the host behind the guest's RAM.

    The kernel looks at all memory of the process for it: some milliseconds per GiB.

    Returns:
        hugepages: `transparent`, `hugetlbfs` or `never`, as `pyvmm run --hugepages` has it
        host-page-size: bytes that can be returned to the host at once, at least
        transparent: memory in transparent huge pages at the moment, in bytes; the process included
        hugetlbfs: memory in huge pages of hugetlbfs that were touched, in bytes
    In QEMU:
        `query-memdev` describes backends as they were configured
    """
    backing = vm.memory_backing
    return {
        "hugepages": backing.hugepages,
        "host-page-size": backing.host_page_bytes,
        "transparent": backing.transparent_bytes,
        "hugetlbfs": backing.hugetlbfs_bytes,
    }


def query_cpus_fast(vm: VmControl) -> list[dict[str, Any]]:
    """Return the vCPUs, without interrupting the guest.

    Returns:
        [].cpu-index: the number of the vCPU, from 0
        [].thread-id: the thread of the host (of the lab, if the guest runs there) that runs it
        [].target: `x86_64`
    In QEMU:
        the same; QEMU adds `qom-path` and `props`
    """
    return [
        {"cpu-index": index, "thread-id": thread_id, "target": "x86_64"}
        for index, thread_id in enumerate(vm.vcpu_thread_ids)
    ]


def stop(vm: VmControl) -> dict[str, Any]:
    """Pause the guest's vCPUs; without effect unless the guest is running.

    A guest that is stopped at an event (`x-trace-step`) then stays paused when its lease ends.

    In QEMU:
        the same
    """
    if vm.status == "running":
        vm.pause()
    vm.leave_paused()
    return {}


def cont(vm: VmControl) -> dict[str, Any]:
    """Resume a paused guest; without effect on a running one.

    Errors:
        GenericError: the guest has ended or has migrated, or is stopped for a snapshot or for the
            switchover of a migration
    In QEMU:
        the same, but a guest that has migrated can be resumed at its source
    """
    if vm.status in ("shutdown", "guest-panicked"):
        raise QmpError("Resetting the Virtual Machine is required")
    if vm.snapshots.active:
        raise QmpError("There is a snapshot in process, please wait")
    if vm.status == "finish-migrate":
        raise QmpError("The guest is stopped for the switchover of its migration")
    if vm.status == "postmigrate":
        raise QmpError("The guest has migrated and runs on the destination")
    if vm.status == "paused":
        vm.resume()
    return {}


def quit_vm(vm: VmControl) -> dict[str, Any]:
    """End the VM, and with it the process of `pyvmm run`, without shutting the guest down.

    In QEMU:
        the same
    """
    vm.quit()
    return {}


def balloon(vm: VmControl, value: int) -> dict[str, Any]:
    """Request a balloon of the size that leaves the guest a given amount of RAM.

    The command returns at once. The guest's driver follows if and as far as it can;
    `query-balloon` and BALLOON_CHANGE report its progress. The balloon consists of pages of 4 KiB,
    so the guest may keep up to 4095 bytes more.

    No size is too small for this command, and the request stays in force: a guest that cannot live
    with it loses programs. `pyvmm balloon` has rules for that, this command has none.

    Arguments:
        value: the RAM that the guest keeps
    Errors:
        GenericError: `value` is 0, negative, or more than the guest's RAM
    In QEMU:
        the same, but a size larger than RAM means all of RAM, and without a balloon device there
        is an error of class DeviceNotActive; every pyvmm guest has one
    """
    if value <= 0:
        raise QmpError("Parameter 'value' expects a size")
    if value > vm.ram_bytes:
        raise QmpError(
            f"Parameter 'value' expects a size of at most {vm.ram_bytes} bytes,"
            " the RAM of the guest"
        )
    vm.set_balloon_target(value)
    return {}


def query_balloon(vm: VmControl) -> dict[str, Any]:
    """Return the RAM that the balloon leaves the guest.

    Returns:
        actual: RAM in bytes, less the size of the balloon as the guest's driver last reported it
        target: RAM in bytes, less the size of the balloon that `balloon` has requested
        driver: whether a driver in the guest runs the balloon
        kept: bytes in the balloon that the host keeps: each is part of a host page
            (`host-page-size` of `query-memory-backing`) that is not in the balloon as a whole
    In QEMU:
        `actual` only, with the error described for `balloon`
    """
    return {
        "actual": vm.balloon_actual_bytes,
        "target": vm.balloon_target_bytes,
        "driver": vm.balloon_driver_runs,
        "kept": vm.balloon_kept_bytes,
    }


COMMANDS = {
    "qmp_capabilities": Command(qmp_capabilities, (Parameter("enable", list, required=False),)),
    "query-version": Command(query_version),
    "query-status": Command(query_status),
    "query-memory-size-summary": Command(query_memory_size_summary),
    "query-memory-backing": Command(query_memory_backing),
    "query-cpus-fast": Command(query_cpus_fast),
    "stop": Command(stop),
    "cont": Command(cont),
    "quit": Command(quit_vm),
    "balloon": Command(
        balloon, (Parameter("value", int, expects="a size in bytes, from 1 to the guest's RAM"),)
    ),
    "query-balloon": Command(query_balloon),
}
