# SPDX-License-Identifier: Apache-2.0
"""Commands that migrate the guest to another pyvmm, as in QEMU (qapi/migration.json).

As in QEMU, `migrate` returns at once, `query-migrate` and MIGRATION events report the progress, and
the source VM stays in the status "postmigrate" until `quit`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyvmm.errors import UserError
from pyvmm.qmp.command import Command, Parameter
from pyvmm.qmp.messages import QmpError
from pyvmm_native import PAGE_BYTES

if TYPE_CHECKING:
    from pyvmm.migration.outgoing import Migrations
    from pyvmm.qmp.vm_control import VmControl
    from pyvmm.sockets.tls import TlsFiles

MIN_BANDWIDTH = 1 << 20
"""The destination would time out while it waits for a slower source."""
MAX_DOWNTIME_MS = 2_000_000
MAX_THROTTLE = 99
"""A vCPU that never runs would never end a migration."""
MAX_CHANNELS = 16
AUTO_CONVERGE = "auto-converge"


def migrate(
    vm: VmControl,
    uri: str,
    unused: bool = True,
    insecure: bool = False,
    tls_ca: str | None = None,
    tls_cert: str | None = None,
    tls_key: str | None = None,
    checksum: str = "auto",
    multifd_channels: int = 1,
) -> dict[str, Any]:
    """Start to migrate the guest to a pyvmm that waits with `--incoming`.

    The command returns at once; `query-migrate` and MIGRATION report the progress. After a failure
    the guest continues here; only if it is unknown whether the destination runs it, it stays
    paused.

    Arguments:
        uri: the address of the destination, `unix:PATH` or `tcp:HOST:PORT`
        unused: leave out the pages that the guest reports as unused
        insecure: allow a connection to another host without TLS
        tls-ca: file with the certificate of the authority; the three files are given together
        tls-cert: file with the certificate of this side
        tls-key: file with its private key
        checksum: the checksum of pages, `crc32c`, `xxh3`, or, on a unix socket, `none`; `auto`, the
            default, is the fastest that both sides have
        multifd-channels: the number of streams that carry pages; with more than one, each is a
            connection beside the first one
    Errors:
        GenericError: a snapshot or a migration is in progress, the guest has ended or has migrated,
            or an address or a file cannot be used
    In QEMU:
        the same with `uri` only; the other arguments are pyvmm's, as QEMU has a migration
            parameter and TLS objects for them, or leaves no choice
    """
    # Imported at the first migration: 18 ms of start-up time (pyvmm.migration and its imports).
    from pyvmm.migration.outgoing import MigrationRefused
    from pyvmm.sockets.addresses import parse_migration_address
    from pyvmm.sockets.tls import Security

    migrations = vm.migrations
    settings = replace(migrations.settings, checksum=checksum, streams=multifd_channels)
    if not unused:
        settings = replace(settings, unused_timeout_s=0.0)
    security = Security(_tls_files(tls_ca, tls_cert, tls_key), insecure)
    try:
        migrations.start(parse_migration_address(uri), security, settings)
    except (MigrationRefused, UserError) as error:
        raise QmpError(str(error)) from None
    return {}


def migrate_cancel(vm: VmControl) -> dict[str, Any]:
    """Cancel the migration, so that the guest runs on here; without effect after the switchover.

    In QEMU:
        the same
    """
    vm.migrations.cancel()
    return {}


def query_migrate(vm: VmControl) -> dict[str, Any]:
    """Return the progress or the result of the last migration; empty if there was none.

    Returns:
        status?: `setup`, `active`, `device` (switchover), `completed`, `failed`, `cancelling` or
            `cancelled`
        total-time?: ms since the start, or from start to end
        downtime?: ms for which the guest ran on neither side, after the switchover
        downtime-steps.stop?: ms until the vCPUs had left the guest
        downtime-steps.save?: ms until the state of the machine was saved
        downtime-steps.pages?: ms until the destination had acknowledged the last pages
        downtime-steps.restore?: ms until it had restored the state
        downtime-steps.start?: ms until it reported that the guest runs
        expected-downtime?: ms that the switchover would take now, before it
        cpu-throttle-percentage?: percentage of their time for which auto-converge keeps the vCPUs
            from running
        error-desc?: the reason of a failure
        checksum?: the checksum of pages, `crc32c`, `xxh3` or `none`, once both sides agree on it
        unused-pages.skipped?: pages not sent because the guest reported them as unused
        unused-pages.how?: the request that the guest answered, or the reason why it has not
        ram.transferred?: bytes sent
        ram.remaining?: bytes of pages to send in this round
        ram.total?: RAM of the guest in bytes
        ram.duplicate?: pages found to be zeros, and not sent
        ram.normal?: pages sent with their contents, counted each time
        ram.normal-bytes?: the same in bytes
        ram.dirty-pages-rate?: pages that the guest changed per second of the last round
        ram.dirty-sync-count?: rounds
        ram.mbps?: throughput of the last round in 10^6 bit/s
        ram.page-size?: bytes of a page
    In QEMU:
        the same, with further members; `checksum`, `unused-pages` and `downtime-steps` are pyvmm's
    """
    migrations = vm.migrations
    if migrations.status == "none":
        return {}
    progress = migrations.progress
    result: dict[str, Any] = {
        "status": migrations.status,
        "total-time": round(progress.total_s * 1000),
        "ram": _ram(vm, migrations),
        "unused-pages": {"skipped": progress.skipped_pages, "how": progress.unused_how},
    }
    if progress.checksum:
        result["checksum"] = progress.checksum
    if progress.downtime_s is not None:
        result["downtime"] = round(progress.downtime_s * 1000)
    elif progress.bandwidth:
        result["expected-downtime"] = round(progress.expected_downtime_s * 1000)
    if progress.downtime is not None:
        steps = progress.downtime.steps.items()
        result["downtime-steps"] = {name: round(seconds * 1000, 3) for name, seconds in steps}
    if progress.throttle_percentage:
        result["cpu-throttle-percentage"] = progress.throttle_percentage
    if migrations.error:
        result["error-desc"] = migrations.error
    return result


def _ram(vm: VmControl, migrations: Migrations) -> dict[str, Any]:
    """Return QEMU's MigrationStats."""
    progress = migrations.progress
    return {
        "transferred": progress.sent_bytes,
        "remaining": progress.remaining_pages * PAGE_BYTES,
        "total": vm.ram_bytes,
        "duplicate": progress.zero_pages,
        "normal": progress.full_pages,
        "normal-bytes": progress.full_pages * PAGE_BYTES,
        "dirty-pages-rate": progress.dirty_pages_rate,
        "dirty-sync-count": progress.rounds,
        "mbps": round(progress.bandwidth * 8 / 1e6, 3),
        "page-size": PAGE_BYTES,
    }


def migrate_set_parameters(
    vm: VmControl,
    max_bandwidth: int | None = None,
    downtime_limit: int | None = None,
    throttle_trigger_threshold: int | None = None,
    cpu_throttle_initial: int | None = None,
    cpu_throttle_increment: int | None = None,
    max_cpu_throttle: int | None = None,
) -> dict[str, Any]:
    """Change parameters of migrations, including the active one; those not given stay.

    Arguments:
        max-bandwidth: bytes that are sent per second while the guest runs; 0 is no limit
        downtime-limit: the longest expected downtime with which the switchover begins
        throttle-trigger-threshold: the ratio of changed to sent bytes beyond which auto-converge
            throttles
        cpu-throttle-initial: the percentage of their time for which vCPUs are first throttled
        cpu-throttle-increment: the step by which it grows
        max-cpu-throttle: its maximum
    Errors:
        GenericError: a value is out of bounds
    In QEMU:
        the same, with further parameters; a bandwidth below 1 MiB/s, which is an error here, is
            possible
    """
    settings = vm.migrations.settings
    changes: dict[str, Any] = {
        "max_bandwidth": max_bandwidth,
        "downtime_limit_s": None if downtime_limit is None else downtime_limit / 1000,
        "throttle_trigger_threshold": throttle_trigger_threshold,
        "cpu_throttle_initial": cpu_throttle_initial,
        "cpu_throttle_increment": cpu_throttle_increment,
        "max_cpu_throttle": max_cpu_throttle,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    changed = replace(settings, **changes)
    least = changed.cpu_throttle_initial
    if not least <= changed.max_cpu_throttle <= MAX_THROTTLE:
        raise QmpError(
            "Parameter 'max-cpu-throttle' expects an integer in the range of"
            f" {least} to {MAX_THROTTLE}"
        )
    vm.migrations.change(**changes)
    return {}


def query_migrate_parameters(vm: VmControl) -> dict[str, Any]:
    """Return the parameters of migrations.

    Returns:
        max-bandwidth: bytes/s; 0 is no limit
        downtime-limit: ms
        throttle-trigger-threshold: per cent, as the following ones
        cpu-throttle-initial: see `migrate-set-parameters`
        cpu-throttle-increment: see `migrate-set-parameters`
        max-cpu-throttle: see `migrate-set-parameters`
    In QEMU:
        the same, with further parameters
    """
    settings = vm.migrations.settings
    return {
        "max-bandwidth": settings.max_bandwidth,
        "downtime-limit": round(settings.downtime_limit_s * 1000),
        "throttle-trigger-threshold": settings.throttle_trigger_threshold,
        "cpu-throttle-initial": settings.cpu_throttle_initial,
        "cpu-throttle-increment": settings.cpu_throttle_increment,
        "max-cpu-throttle": settings.max_cpu_throttle,
    }


def migrate_set_capabilities(vm: VmControl, capabilities: list[dict[str, Any]]) -> dict[str, Any]:
    """Enable or disable capabilities for the migrations to come.

    The only one is `auto-converge`: a guest that changes its memory faster than it can be sent is
    throttled until the migration converges.

    Arguments:
        capabilities: elements with the members "capability", a name, and "state", a boolean
    Errors:
        GenericError: a migration is in progress, or there is no such capability
    In QEMU:
        the same, with further capabilities
    """
    migrations = vm.migrations
    if migrations.active:
        raise QmpError("There's a migration process in progress")
    settings = migrations.settings
    for index, given in enumerate(capabilities):
        settings = replace(settings, auto_converge=_auto_converge(given, index))
    migrations.settings = settings
    return {}


def _auto_converge(given: Any, index: int) -> bool:
    """Return the state in element `index` of migrate-set-capabilities' list."""
    if type(given) is not dict or given.keys() != {"capability", "state"}:
        raise QmpError(f"Parameter 'capabilities[{index}]' expects 'capability' and 'state'")
    if given["capability"] != AUTO_CONVERGE:
        raise QmpError(f"Parameter 'capability' does not accept value '{given['capability']}'")
    if type(given["state"]) is not bool:
        name = f"capabilities[{index}].state"
        raise QmpError(f"Invalid parameter type for '{name}', expected: boolean")
    return given["state"]


def query_migrate_capabilities(vm: VmControl) -> list[dict[str, Any]]:
    """Return all capabilities and whether they are enabled.

    Returns:
        [].capability: the name of a capability
        [].state: whether it is enabled
    In QEMU:
        the same, with further capabilities
    """
    state = vm.migrations.settings.auto_converge
    return [{"capability": AUTO_CONVERGE, "state": state}]


def _tls_files(*names: str | None) -> TlsFiles | None:
    given = [Path(name) for name in names if name is not None]
    if not given:
        return None
    if len(given) != len(names):
        raise QmpError("Parameters tls-ca, tls-cert, tls-key must be given together")
    # Imported at the first migration with TLS files: 2 ms of start-up time.
    from pyvmm.sockets.tls import TlsFiles

    return TlsFiles(*given)


def _integer(name: str, least: int, most: int, unit: str = "") -> Parameter:
    return Parameter(
        name,
        int,
        required=False,
        expects=f"an integer in the range of {least} to {most}{unit}",
        accepts=lambda value: least <= value <= most,
    )


_MIGRATE = (
    Parameter("uri", str),
    Parameter("unused", bool, required=False),
    Parameter("insecure", bool, required=False),
    Parameter("tls-ca", str, required=False),
    Parameter("tls-cert", str, required=False),
    Parameter("tls-key", str, required=False),
    Parameter(
        "checksum",
        str,
        required=False,
        expects="'auto', 'crc32c', 'xxh3' or 'none'",
        accepts=lambda name: name in ("auto", "crc32c", "xxh3", "none"),
    ),
    _integer("multifd-channels", 1, MAX_CHANNELS),
)
_SETTINGS = (
    Parameter(
        "max-bandwidth",
        int,
        required=False,
        expects=f"0 or at least {MIN_BANDWIDTH} bytes/second",
        accepts=lambda limit: limit == 0 or MIN_BANDWIDTH <= limit < 1 << 63,
    ),
    _integer("downtime-limit", 0, MAX_DOWNTIME_MS, " milliseconds"),
    _integer("throttle-trigger-threshold", 1, 100),
    _integer("cpu-throttle-initial", 1, MAX_THROTTLE),
    _integer("cpu-throttle-increment", 1, MAX_THROTTLE),
    Parameter(
        "max-cpu-throttle",
        int,
        required=False,
        expects=f"an integer in the range of cpu-throttle-initial to {MAX_THROTTLE}",
    ),
)

COMMANDS = {
    "migrate": Command(migrate, _MIGRATE),
    "migrate_cancel": Command(migrate_cancel),
    "query-migrate": Command(query_migrate),
    "migrate-set-parameters": Command(migrate_set_parameters, _SETTINGS),
    "query-migrate-parameters": Command(query_migrate_parameters),
    "migrate-set-capabilities": Command(
        migrate_set_capabilities, (Parameter("capabilities", list),)
    ),
    "query-migrate-capabilities": Command(query_migrate_capabilities),
}
