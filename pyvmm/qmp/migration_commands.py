# SPDX-License-Identifier: Apache-2.0
"""Commands that migrate the guest to another pyvmm, as in QEMU (qapi/migration.json).

    migrate                   {"uri": ADDRESS, "unused": bool, "insecure": bool,
                               "tls-ca": FILE, "tls-cert": FILE, "tls-key": FILE}
    migrate_cancel
    query-migrate
    migrate-set-parameters    {"max-bandwidth": bytes/s, "downtime-limit": ms,
                               "throttle-trigger-threshold": %, "cpu-throttle-initial": %,
                               "cpu-throttle-increment": %, "max-cpu-throttle": %}
    query-migrate-parameters
    migrate-set-capabilities  {"capabilities": [{"capability": "auto-converge", "state": bool}]}
    query-migrate-capabilities

As in QEMU, `migrate` returns at once, `query-migrate` and MIGRATION events report the progress, and
the source VM stays in the status "postmigrate" until `quit`. pyvmm's own are all arguments of
`migrate` but the first (with "unused" false the guest is not asked for its unused pages), and
"unused-pages" of query-migrate: how many pages were skipped for that reason, and the outcome of the
request. A "max-bandwidth" of 0, the default, is no limit.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyvmm.errors import UserError
from pyvmm.qmp.messages import QmpError
from pyvmm_native import PAGE_BYTES

if TYPE_CHECKING:
    from pyvmm.migration.outgoing import Migrations
    from pyvmm.migration.progress import Settings
    from pyvmm.qmp.vm_control import VmControl
    from pyvmm.sockets.tls import TlsFiles

MIN_BANDWIDTH = 1 << 20
"""The destination would time out while it waits for a slower source."""
MAX_DOWNTIME_MS = 2_000_000
_PERCENTAGES = {
    "throttle-trigger-threshold": (1, 100),
    "cpu-throttle-initial": (1, 99),
    "cpu-throttle-increment": (1, 99),
    "max-cpu-throttle": (1, 99),
}
"""Parameters of auto-converge and their ranges; `Settings` has them with underscores."""
AUTO_CONVERGE = "auto-converge"
_TLS = ("tls-ca", "tls-cert", "tls-key")


def migrate(vm: VmControl, uri: str, **options: Any) -> dict[str, Any]:
    """Start a migration."""
    # Imported at the first migration: 18 ms of start-up time (pyvmm.migration and its imports).
    from pyvmm.migration.outgoing import MigrationRefused
    from pyvmm.sockets.addresses import parse_migration_address
    from pyvmm.sockets.tls import Security

    if vm.snapshots.active:
        raise QmpError("There is a snapshot in process, please wait")
    migrations = vm.migrations
    settings = migrations.settings
    if not options.get("unused", True):
        settings = replace(settings, unused_timeout_s=0.0)
    security = Security(_tls_files(options), options.get("insecure", False))
    try:
        migrations.start(parse_migration_address(uri), security, settings)
    except (MigrationRefused, UserError) as error:
        raise QmpError(str(error)) from None
    return {}


def migrate_cancel(vm: VmControl) -> dict[str, Any]:
    """Cancel the migration; without effect after the switchover."""
    vm.migrations.cancel()
    return {}


def query_migrate(vm: VmControl) -> dict[str, Any]:
    """Return the progress or the result of the last migration; empty if there was none."""
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
    if progress.downtime_s is not None:
        result["downtime"] = round(progress.downtime_s * 1000)
    elif progress.bandwidth:
        result["expected-downtime"] = round(progress.expected_downtime_s * 1000)
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


def migrate_set_parameters(vm: VmControl, **parameters: int) -> dict[str, Any]:
    """Change the parameters of migrations, including the active one."""
    migrations = vm.migrations
    limit = parameters.get("max-bandwidth", migrations.settings.max_bandwidth)
    downtime_ms = parameters.get(
        "downtime-limit", round(migrations.settings.downtime_limit_s * 1000)
    )
    if limit and not MIN_BANDWIDTH <= limit < 1 << 63:
        raise QmpError(
            f"Parameter 'max-bandwidth' expects 0 or at least {MIN_BANDWIDTH} bytes/second"
        )
    if not 0 <= downtime_ms <= MAX_DOWNTIME_MS:
        raise QmpError(
            "Parameter 'downtime-limit' expects an integer in the range of"
            f" 0 to {MAX_DOWNTIME_MS} milliseconds"
        )
    migrations.change(
        max_bandwidth=limit,
        downtime_limit_s=downtime_ms / 1000,
        **_percentages(migrations.settings, parameters),
    )
    return {}


def _percentages(settings: Settings, parameters: dict[str, int]) -> dict[str, Any]:
    """Return those of auto-converge as `Settings` names them, changed by `parameters`."""
    values = {
        name: parameters.get(name, value) for name, value in _current_percentages(settings).items()
    }
    for name, (least, most) in _PERCENTAGES.items():
        if name == "max-cpu-throttle":
            least = values["cpu-throttle-initial"]
        if not least <= values[name] <= most:
            raise QmpError(
                f"Parameter '{name}' expects an integer in the range of {least} to {most}"
            )
    return {name.replace("-", "_"): value for name, value in values.items()}


def _current_percentages(settings: Settings) -> dict[str, int]:
    return {
        "throttle-trigger-threshold": settings.throttle_trigger_threshold,
        "cpu-throttle-initial": settings.cpu_throttle_initial,
        "cpu-throttle-increment": settings.cpu_throttle_increment,
        "max-cpu-throttle": settings.max_cpu_throttle,
    }


def query_migrate_parameters(vm: VmControl) -> dict[str, Any]:
    """Return the parameters of migrations."""
    settings = vm.migrations.settings
    return {
        "max-bandwidth": settings.max_bandwidth,
        "downtime-limit": round(settings.downtime_limit_s * 1000),
        **_current_percentages(settings),
    }


def migrate_set_capabilities(vm: VmControl, capabilities: list[dict[str, Any]]) -> dict[str, Any]:
    """Enable or disable "auto-converge", the only capability, for the next migrations."""
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
    """Return all capabilities and whether they are enabled."""
    state = vm.migrations.settings.auto_converge
    return [{"capability": AUTO_CONVERGE, "state": state}]


def _tls_files(options: dict[str, Any]) -> TlsFiles | None:
    # Imported at the first migration with TLS files: 2 ms of start-up time.
    from pyvmm.sockets.tls import TlsFiles

    given = [options[name] for name in _TLS if name in options]
    if not given:
        return None
    if len(given) != len(_TLS):
        raise QmpError(f"Parameters {', '.join(_TLS)} must be given together")
    return TlsFiles(*map(Path, given))
