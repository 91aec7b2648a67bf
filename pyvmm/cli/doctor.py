# SPDX-License-Identifier: Apache-2.0
"""`pyvmm doctor`: report the state of this machine, where guests will run, and what to install.

Every line of the report is a `Finding`, returned by one small function that changes nothing. A
finding with a problem has a remedy, and names what needs it: the lab or the guest image. The
conclusion follows from the findings: this machine's KVM if it is fit, else the lab if it is
complete. The command works with native modules missing: it reports them.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from guest_images.recipe import (
    BUSYBOX,
    BUSYBOX_PACKAGE,
    KERNEL_ARCHIVE,
    KERNEL_PACKAGE,
    TOOLS,
    check_tools,
)
from pyvmm.blocking.process_limit import process_limit_reported
from pyvmm.cli.installation import describe_installation, find_conflicts
from pyvmm.cli.json_output import json_option, print_json
from pyvmm.cli.remedies import remedy as remedy_for
from pyvmm.errors import UserError
from pyvmm.lab.kernel import find_kernel
from pyvmm.lab.processors import DEFAULT_CPUS, single_processor_reason
from pyvmm.lab.qemu import find_qemu
from pyvmm.machine.kvm_probe import KvmFitness, Verdict, probe_host_kvm
from pyvmm.machine.kvm_verdict import KVM_DEVICE
from pyvmm.memory.huge_page_pool import read_pool, transparent_setting
from pyvmm.standard_streams.rich_console import TextConsole

EXIT_NOTHING_USABLE = 2
XXH3 = "xxh3"
XXHASH_PACKAGE = "libxxhash-dev"


class Needed(Enum):
    """The part of pyvmm that needs the subject of a finding."""

    HOST = "host KVM"
    LAB = "lab"
    IMAGE = "guest image"
    NOTHING = ""


@dataclass(frozen=True)
class Finding:
    """One line of the report; `remedy` is empty when there is no problem."""

    subject: str
    found: str
    needed: Needed = Needed.NOTHING
    remedy: str = ""

    @property
    def ok(self) -> bool:
        """True when nothing needs to be done."""
        return not self.remedy


def check_device() -> Finding:
    """Report the mode and owner of /dev/kvm."""
    try:
        status = os.stat(KVM_DEVICE)
    except FileNotFoundError:
        return Finding(KVM_DEVICE, "missing", Needed.HOST, "load the module kvm-intel or kvm-amd")
    owner = f"{_user(status.st_uid)}:{_group(status.st_gid)}"
    found = f"{stat.filemode(status.st_mode)} {owner}"
    if os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        return Finding(KVM_DEVICE, found, Needed.HOST)
    remedy = device_remedy(status.st_mode, _group(status.st_gid), _user(os.getuid()))
    return Finding(KVM_DEVICE, f"{found}, not accessible to this user", Needed.HOST, remedy)


def device_remedy(mode: int, group: str, user: str) -> str:
    """Return the commands that give `user` access to /dev/kvm, which has `mode` and `group`.

    In a container the device often has a group of the host, which has only a number here.
    """
    join = f"usermod -aG {{}} {user}, then log in again"
    for_group = stat.S_IRGRP | stat.S_IWGRP
    if mode & for_group == for_group and group != "root":
        if group.isdigit():
            return f"groupadd -g {group} hostkvm && {join.format('hostkvm')}"
        return join.format(group)
    return f"chgrp kvm {KVM_DEVICE} && chmod 660 {KVM_DEVICE} && {join.format('kvm')}"


def check_fitness() -> Finding:
    """Report the probe's verdict on this machine's KVM."""
    fitness = probe_host_kvm()
    text = fitness.reason if fitness.fit else f"{fitness.verdict.value}: {fitness.reason}"
    figures = describe_figures(fitness)
    found = f"{text} ({figures})" if figures else text
    remedy = "" if fitness.fit else "nothing to install: the lab is used instead"
    return Finding("host KVM", found, Needed.HOST, remedy)


def describe_figures(fitness: KvmFitness) -> str:
    """Return the probe's measurements in words; "" when it made none."""
    words = []
    if fitness.ring0_instructions_per_second is not None:
        millions = fitness.ring0_instructions_per_second / 1e6
        words.append(f"ring 0: {millions:,.1f} million instructions/s")
    if fitness.syscall_arrives is not None:
        words.append(f"SYSCALL: {'correct' if fitness.syscall_arrives else 'wrong'}")
    return ", ".join(words)


def check_processor() -> Finding:
    """Report vendor, model and virtualisation extension of the processor."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags", "").split()
    extension = "VMX" if "vmx" in flags else "SVM" if "svm" in flags else "neither VMX nor SVM"
    model = f"{fields.get('vendor_id', 'unknown')}, {fields.get('model name', 'unknown')}"
    return Finding("processor", f"{model}, {os.cpu_count()} online, {extension}")


def check_memory() -> Finding:
    """Report total and available RAM."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    gib = {key: int(fields[key].split()[0]) / (1 << 20) for key in ("MemTotal", "MemAvailable")}
    found = f"{gib['MemTotal']:.1f} GiB, {gib['MemAvailable']:.1f} GiB available"
    return Finding("memory", found)


def check_huge_pages() -> Finding:
    """Report the kernel's setting of transparent huge pages, and the pool of hugetlbfs."""
    pool = read_pool()
    if pool is None:
        reserved = "no huge pages of 2 MiB to reserve"
    else:
        reserved = (
            f"hugetlbfs: {pool.available} of {pool.total + pool.surplus} pages of 2 MiB available"
            " (a guest with --hugepages hugetlbfs needs one for each 2 MiB of its RAM:"
            " sysctl vm.nr_hugepages=N)"
        )
    return Finding("huge pages", f"transparent: {transparent_setting()}; {reserved}")


def check_qemu() -> Finding:
    """Report the version of the emulator, and the processors that a lab has with it."""
    try:
        path = find_qemu()
        with process_limit_reported():
            output = subprocess.run(
                [path, "--version"], capture_output=True, text=True, check=False
            )
    except UserError as error:
        return Finding("QEMU", str(error), Needed.LAB, remedy_for(error))
    version = (output.stdout.splitlines() or [path])[0]
    processors = f"{DEFAULT_CPUS} processor: {single_processor_reason(version)}"
    return Finding("QEMU", f"{version}; a lab has {processors}", Needed.LAB)


def check_lab_kernel() -> Finding:
    """Report the kernel that the lab boots."""
    try:
        found = find_kernel()
    except UserError as error:
        return Finding("lab kernel", str(error), Needed.LAB, remedy_for(error))
    return Finding("lab kernel", f"{found.release}, with 9p, virtio and kvm-amd", Needed.LAB)


def check_kernel_source() -> Finding:
    """Report the source that the guest image's kernel is built from."""
    if KERNEL_ARCHIVE.is_file():
        return Finding("kernel source", str(KERNEL_ARCHIVE), Needed.IMAGE)
    remedy = f"apt-get install {KERNEL_PACKAGE}"
    return Finding("kernel source", f"no {KERNEL_ARCHIVE}", Needed.IMAGE, remedy)


def check_image_tools() -> Finding:
    """Report the programs and headers that the image build uses, and busybox."""
    try:
        check_tools()
    except UserError as error:
        return Finding("image tools", str(error), Needed.IMAGE, remedy_for(error))
    if not BUSYBOX.is_file():
        remedy = f"apt-get install {BUSYBOX_PACKAGE}"
        return Finding("image tools", f"no {BUSYBOX}", Needed.IMAGE, remedy)
    return Finding("image tools", f"{', '.join(TOOLS)}, {BUSYBOX}", Needed.IMAGE)


def check_native() -> Finding:
    """Report the compiled modules."""
    try:
        kvm_run = import_module("pyvmm_native.kvm_run")
    except ImportError as error:
        return Finding("native modules", f"not built ({error})", Needed.NOTHING, "make native")
    return Finding("native modules", str(Path(kvm_run.__file__ or "").parent))


def check_checksums() -> Finding:
    """Report the checksums that memory can have in a migration."""
    try:
        known: tuple[str, ...] = import_module("pyvmm_native.checksum").CHECKSUMS
    except ImportError as error:
        return Finding("checksums", f"not built ({error})", Needed.NOTHING, "make native")
    found = ", ".join(known)
    if XXH3 in known:
        return Finding("checksums", found)
    remedy = f"apt-get install {XXHASH_PACKAGE}, then build pyvmm again"
    return Finding("checksums", f"{found}; no {XXH3}, the fastest in a lab", remedy=remedy)


def check_installation() -> Finding:
    """Report the installed distribution, and packages that another one has overwritten or hides."""
    if conflicts := find_conflicts():
        found = "; ".join(each.fact for each in conflicts)
        return Finding("installation", found, Needed.NOTHING, conflicts[0].remedy)
    return Finding("installation", describe_installation())


CHECKS: tuple[Callable[[], Finding], ...] = (
    check_device,
    check_fitness,
    check_processor,
    check_memory,
    check_huge_pages,
    check_qemu,
    check_lab_kernel,
    check_kernel_source,
    check_image_tools,
    check_native,
    check_checksums,
    check_installation,
)


def conclude(findings: list[Finding], fitness: KvmFitness) -> tuple[bool, str]:
    """Return True if guests can run, and a sentence that says where and why."""
    if fitness.fit:
        return (
            True,
            "pyvmm uses this machine's KVM: it runs ring 0 and system calls correctly",
        )
    because = f"this machine's KVM is {fitness.verdict.value}"
    if fitness.verdict is Verdict.UNREADABLE:
        because = fitness.reason
    missing = [item.subject for item in findings if item.needed is Needed.LAB and not item.ok]
    if missing:
        parts = " and ".join(missing)
        return (
            False,
            f"pyvmm cannot run a guest: {because}, and the lab lacks {parts}",
        )
    return True, f"pyvmm uses the lab, an emulated machine, because {because}"


def install_lines(findings: list[Finding]) -> list[str]:
    """Return the shell commands that install what is missing; one apt-get for all packages."""
    packages: dict[str, None] = {}
    others: dict[str, None] = {}
    for remedy in (item.remedy for item in findings if item.needed is not Needed.HOST):
        command, _, rest = remedy.partition("apt-get install ")
        if rest and not command:
            packages.update(dict.fromkeys(rest.split(",")[0].split()))
        elif remedy:
            others.setdefault(remedy)
    lines = [f"apt-get install {' '.join(packages)}"] if packages else []
    return lines + list(others)


@click.command()
@json_option
def doctor(as_json: bool) -> int:
    """Report what pyvmm found on this machine, where guests will run, and what to install.

    The exit status is 0 when guests can run, here or in the lab, and 2 when they cannot.
    """
    findings = [check() for check in CHECKS]
    fitness = probe_host_kvm()
    usable, conclusion = conclude(findings, fitness)
    if as_json:
        print_json(_document(findings, fitness, usable, conclusion))
    else:
        _print_report(findings, usable, conclusion)
    return 0 if usable else EXIT_NOTHING_USABLE


def _document(
    findings: list[Finding], fitness: KvmFitness, usable: bool, conclusion: str
) -> dict[str, Any]:
    """Return the document of `--json`."""
    return {
        "usable": usable,
        "kvm": ("host" if fitness.fit else "lab") if usable else None,
        "conclusion": conclusion,
        "host-kvm": {
            "verdict": fitness.verdict.value,
            "reason": fitness.reason or None,
            "ring0-instructions-per-second": fitness.ring0_instructions_per_second,
            "syscall-correct": fitness.syscall_arrives,
        },
        "findings": [
            {
                "subject": item.subject,
                "found": item.found,
                "needed-for": item.needed.value or None,
                "ok": item.ok,
                "remedy": item.remedy or None,
            }
            for item in findings
        ],
        "install": install_lines(findings),
    }


def _print_report(findings: list[Finding], usable: bool, conclusion: str) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("", "checked", "found", "needed for"):
        table.add_column(heading, overflow="fold")
    for item in findings:
        mark = Text("ok", "green") if item.ok else Text("--", "yellow")
        # The remedies of other findings are the commands below the table.
        remedy = item.remedy if item.needed is Needed.HOST else ""
        found = "; ".join(filter(None, (item.found, remedy)))
        table.add_row(mark, item.subject, found, item.needed.value)
    console = TextConsole()
    console.print(table)
    console.print()
    console.print(conclusion, style="green" if usable else "red", soft_wrap=True)
    if lines := install_lines(findings):
        console.print("\nTo install what is missing, run:")
        for line in lines:
            console.print(f"  {line}", soft_wrap=True)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
