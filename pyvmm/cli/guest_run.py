# SPDX-License-Identifier: Apache-2.0
"""Run the guest of `pyvmm run`, here or in the lab, once its options are read.

Errors in files are reported before anything is started. Then this process runs the machine or,
where KVM is missing, unfit or refuses, runs the same command line again in the lab. Signals that
end the process are held from the first socket until either of them takes them.

A module that only some guests need is imported late; each such import names the start-up time it
saves (tests/project/test_imports.py keeps a boot free of them).
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from pyvmm.boot.image_config import config_for_image
from pyvmm.cli.end_signals import held_end_signals
from pyvmm.cli.errors import CommandError
from pyvmm.cli.huge_pages import prepare_huge_pages
from pyvmm.lab.choose import KvmMode, known_host, run_where_kvm_works

if TYPE_CHECKING:
    from pyvmm.cli.command_request import GuestAdditions
    from pyvmm.cli.console.ports import PortOption
    from pyvmm.cli.record_options import RecordOptions
    from pyvmm.config import HugePages, MachineConfig
    from pyvmm.machine.early_boot import EarlyBoot
    from pyvmm.runtime_directory.announcement import ListeningSocket
    from pyvmm.snapshot.reader import SnapshotFile
    from pyvmm.sockets.tls import Security


def socket_paths(addresses: Sequence[str]) -> list[Path]:
    """Return the paths of control sockets; raises `UserError` for an invalid address."""
    if not addresses:
        return []
    # Late: saves 0.7 ms without --qmp.
    from pyvmm.sockets.addresses import parse_unix_address

    return [parse_unix_address(address) for address in addresses]


def boot_image(
    image: Path,
    *,
    ram_bytes: int,
    hugepages: HugePages,
    cpus: int,
    initrd: Path | None,
    append: str,
    dialect: str | None,
    offer: Sequence[str],
    withhold: Sequence[str],
    rng: bool,
    rng_limit: int | None,
    console: str,
    guest_name: str | None,
    sockets: Sequence[Path],
    kvm: KvmMode,
    ports: Sequence[PortOption] = (),
    record: RecordOptions | None = None,
    additions: GuestAdditions | None = None,
) -> int:
    """Boot the guest in `image` and run it to its end; returns the exit status.

    The parameters are those of the options; `additions` are what a COMMAND needs in the guest.
    """
    config = config_for_image(
        image,
        initrd=initrd,
        append=append,
        ram_bytes=ram_bytes,
        vcpus=cpus,
        dialect=dialect,
        offer=offer,
        withhold=withhold,
        rng=_rng_rate(rng, rng_limit),
        console=console,
        ports=[*(additions.ports if additions else ()), *(port.name for port in ports)],
        hugepages=hugepages,
    )
    # Late: 4 ms (KVM), which --incoming does not need here.
    from pyvmm.machine.early_boot import EarlyBoot

    boot = EarlyBoot(config)
    if known_host(kvm) and hugepages != "hugetlbfs":  # of which the lab first makes a pool
        boot.begin()
    # Late: 3 ms, while the VM is created.
    from pyvmm.boot.loader import read_boot_files

    # Reports unusable files before the lab or the guest starts.
    boot.load(read_boot_files(config, additions.overlay if additions else b""))
    if additions is not None:
        additions.overlay.clear()  # `boot` has it
    return run_guest(config, boot, guest_name, sockets, ports, record, kvm, additions)


def run_guest(
    config: MachineConfig,
    source: EarlyBoot | SnapshotFile,
    name: str | None,
    sockets: Sequence[Path],
    ports: Sequence[PortOption],
    record: RecordOptions | None,
    kvm: KvmMode,
    additions: GuestAdditions | None = None,
) -> int:
    """Boot the VM of `config`, or restore it from a snapshot, where KVM works, and run it."""
    command = additions.command if additions else None
    # Late: 4 ms (KVM) that only a boot has paid before.
    from pyvmm.machine.early_boot import EarlyBoot

    image = config.kernel if isinstance(source, EarlyBoot) else source.path
    with held_end_signals(), ExitStack() as stack:
        named = _announce(stack, name, image, config.ram_bytes) if name is not None else None

        def announce() -> ListeningSocket | None:
            return named or _announce(stack, name, image, config.ram_bytes)

        def run_on_host() -> int:
            prepare_huge_pages(config.hugepages, config.ram_bytes)
            if not isinstance(source, EarlyBoot):
                # Late: saves 30 ms (asyncio) without --restore.
                from pyvmm.cli.terminal_run import run_restored

                return run_restored(config, source, sockets, ports, record, announce())
            source.begin()
            # Late: 7 ms, while VM and kernel get ready; the lab needs none of it.
            from pyvmm.cli.boot_run import boot_on_terminal, boot_with_command

            if command is not None:
                return boot_with_command(source, command, sockets, ports, record, announce)
            return boot_on_terminal(source, sockets, ports, record, announce)

        def run_in_lab() -> int:
            # Late: saves 23 ms (the lab) where KVM is fit.
            from pyvmm.cli.lab import run_again_in_lab
            from pyvmm.standard_streams.log import set_up_log

            gc.enable()
            set_up_log()
            files = [*(additions.host_paths if additions else ())]
            if isinstance(source, EarlyBoot):
                source.discard()  # the process in the lab reads the files itself
                files += filter(None, (config.kernel, config.initrd))
            return run_again_in_lab(config.ram_bytes, announce(), sockets, ports, files)

        # With a command, standard error output is the command's.
        return run_where_kvm_works(kvm, run_on_host, run_in_lab, quiet=command is not None)


def _announce(
    stack: ExitStack, name: str | None, image: Path, ram_bytes: int
) -> ListeningSocket | None:
    """Announce a guest until `stack` is left, as `announced`.

    An announcement is refused only because of its `name`, so a guest without one runs before.
    """
    # Late: saves 4 ms of such a guest.
    from pyvmm.cli.announced_run import announced

    return stack.enter_context(announced(name, image, ram_bytes))


def _rng_rate(rng: bool, bytes_per_s: int | None) -> int | None:
    """Return the configuration of the entropy device that the two options ask for."""
    if bytes_per_s is None:
        return 0 if rng else None
    if not bytes_per_s:
        raise CommandError("--rng-limit 0 would supply nothing", "give --rng for no limit")
    return bytes_per_s


def run_incoming_guest(
    incoming: str,
    protection: Security,
    max_ram_bytes: int,
    hugepages: HugePages,
    name: str | None,
    sockets: Sequence[Path],
    ports: Sequence[PortOption],
    record: RecordOptions | None,
    kvm: KvmMode,
) -> int:
    """Wait for a guest that another pyvmm sends, and run it."""
    # Late: saves 9 ms (ssl) without --incoming.
    from pyvmm.cli.announced_run import announced
    from pyvmm.sockets.addresses import parse_migration_address
    from pyvmm.sockets.listener import MigrationListener

    address = parse_migration_address(incoming)
    with held_end_signals(), announced(name, None, max_ram_bytes, address) as guest:

        def run_on_host() -> int:
            prepare_huge_pages(hugepages, max_ram_bytes)
            # Late: saves 34 ms (the machine) where the lab runs it.
            from pyvmm.cli.terminal_run import run_incoming

            listener = MigrationListener(address, protection)
            return run_incoming(listener, max_ram_bytes, hugepages, sockets, ports, record, guest)

        def run_in_lab() -> int:
            # Late: saves 23 ms (the lab) where KVM is fit.
            from pyvmm.cli.lab import run_again_in_lab

            return run_again_in_lab(
                max_ram_bytes, guest, sockets, ports, incoming=address, security=protection
            )

        return run_where_kvm_works(kvm, run_on_host, run_in_lab)
