# SPDX-License-Identifier: Apache-2.0
"""Remedies: what the user can do about an error, in terms of the command line.

The rest of pyvmm raises errors that state a fact, "a guest cannot have 9 vCPUs, only 1 to 8"; this
module knows the option that changes it. A plain `UserError` needs no remedy: its message says
everything. Errors of the process that runs a guest arrive over its control socket as text, without
a class; `REPORTED` recognizes the facts that a command can change.
"""

from __future__ import annotations

import re

from guest_images import errors as image
from guest_images.manifest import ManifestError
from pyvmm.balloon.safe_target import UnsafeTarget
from pyvmm.boot import errors as boot
from pyvmm.cache.directory import CacheUnusable
from pyvmm.cli.errors import MORE_DESCRIPTORS, CommandError, RequestFailed
from pyvmm.config import InvalidConfiguration
from pyvmm.errors import NotInstalled, ProcessNotStarted, ThreadNotStarted, UserError
from pyvmm.files.errors import OutputNotWritten
from pyvmm.guest_agent import errors as agent
from pyvmm.lab import errors as lab
from pyvmm.learn.errors import ExerciseUnusable
from pyvmm.machine.errors import (
    KvmUnusable,
    MachineNotCreated,
    PlatformNotCreated,
    TooManyOpenFiles,
    VcpuNotStopped,
)
from pyvmm.memory.errors import HostMemoryUnavailable, HugePagesUnavailable
from pyvmm.migration.errors import IncomingMigrationFailed
from pyvmm.qmp import errors as qmp
from pyvmm.runtime_directory import errors as runtime
from pyvmm.scope import errors as scope
from pyvmm.snapshot import errors as snapshot
from pyvmm.sockets import errors as sockets
from pyvmm.sockets.addresses import format_unix_address
from pyvmm.trace.errors import RecordingNotWritten, RecordingUnusable
from pyvmm.units import MIB

_MORE_PROCESSES = "raise the limit of processes and threads, for example: ulimit -u 4096"

REMEDIES: dict[type[UserError], str] = {
    CacheUnusable: "set XDG_CACHE_HOME to a directory that you may write to",
    HostMemoryUnavailable: "give the guest less with --memory",
    ExerciseUnusable: "give the file that 'pyvmm learn N --exercise' has written",
    IncomingMigrationFailed: "the guest still runs at its source, unless that says otherwise",
    MachineNotCreated: "see 'pyvmm doctor', or use --kvm lab",
    PlatformNotCreated: "see 'pyvmm doctor', or use --kvm lab",
    TooManyOpenFiles: MORE_DESCRIPTORS,
    ProcessNotStarted: _MORE_PROCESSES,
    ThreadNotStarted: _MORE_PROCESSES,
    OutputNotWritten: "choose another --output",
    UnsafeTarget: "give a larger target, or set this one with --force",
    VcpuNotStopped: "try again, or end the guest with: pyvmm quit",
    RecordingNotWritten: "give --record another path or size",
    RecordingUnusable: "make one with: pyvmm run IMAGE --record FILE",
    agent.CommandNotStarted: "give a program that the guest has, or add it with --put",
    boot.CommandLineUnusable: "change --append",
    boot.InitramfsUnusable: "check --initrd",
    boot.ModulesUnusable: "name their directory or Debian package with --modules",
    boot.OverlayUnusable: "check --put",
    boot.KernelUnusable: (
        "give a vmlinux or a bzImage of Linux 3.8 or later for x86-64, such as /boot/vmlinuz-*,"
        " or build an image with: pyvmm image build --output guest.img"
    ),
    agent.AgentFailed: "see the kernel's log with --log -",
    agent.CommandUnusable: "shorten the arguments, or put them into a file with --put",
    agent.OutputIncomplete: "run it again",
    agent.WorkingDirectoryUnusable: "name a directory of the guest with --directory",
    KvmUnusable: "run the script where KVM works: pyvmm lab -- python SCRIPT",
    image.ImageNotWritten: "choose another --output",
    image.KernelSourceModified: "build from an unmodified source with --source",
    image.KernelSourceUnusable: "name a Linux 6.12 source tree or archive with --source",
    ManifestError: "build the image again with: pyvmm image build --force",
    lab.NotSharedWithLab: "use another directory, or --kvm host",
    lab.LabError: "try again, or see 'pyvmm doctor'",
    qmp.NotQmpSocket: "give the address that was given to --qmp",
    qmp.QmpServerUnresponsive: (
        "wait for other clients to disconnect (QEMU serves one at a time), or restart the server"
    ),
    runtime.GuestNameInUse: "give another --name, or end that guest with: pyvmm quit",
    runtime.InvalidGuestName: "give another name",
    runtime.RuntimeDirectoryUnusable: "set XDG_RUNTIME_DIR to a directory that only you may use",
    scope.EventsUnsupported: "use the pyvmm that runs the guest, 0.1.0 or later",
    scope.GuestNotWatched: "end the other scope of this guest with Ctrl-C, or record the next run",
    scope.PortInUse: "choose another with --port, or leave it out",
    snapshot.SnapshotDamaged: "take another one",
    snapshot.SnapshotIncompatible: "restore it where it was taken, or with that version of pyvmm",
    snapshot.SnapshotNotDurable: "check that file system, and take another one",
    snapshot.SnapshotPathInUse: "choose another path, or replace the file with --force",
    snapshot.SnapshotNotWritten: (
        "choose another path or free some space; an older file there is unchanged"
    ),
    sockets.AddressUnavailable: "choose another address",
    sockets.PeerUntrusted: "check the certificates of both sides",
    sockets.SocketNotCreated: "choose a path in an existing directory that you may write to",
    sockets.SocketPathTooLong: "choose a shorter one, or one relative to the working directory",
    sockets.TlsFilesUnusable: "give PEM files: a CA, a certificate signed by it, and its key",
    sockets.TlsKeyEncrypted: (
        "give one without a passphrase that only you can read, made with: openssl pkey -in KEY"
        " -out NEW-KEY"
    ),
    sockets.TlsOnUnixSocket: "leave out the --tls options",
    sockets.TlsRequired: (
        "give --tls-ca, --tls-cert and --tls-key, or --insecure in a network you trust"
    ),
}

PARAMETER_OPTIONS = {
    "ram_bytes": "--memory",
    "vcpus": "--cpus",
    "dialect": "--dialect",
    "features": "--offer, --withhold or --dialect",
    "rng": "--rng-limit",
    "console": "--console",
    "ports": "--port",
    "hugepages": "--hugepages",
}


KVM_REMEDIES = {
    "missing": (
        "load its module (modprobe kvm-intel or kvm-amd; virtualization must be enabled in the"
        " firmware) or use --kvm lab"
    ),
    "unreadable": (
        "add yourself to its group (usermod -aG kvm USER, then log in again) or use --kvm lab"
    ),
}
"""By the probe's verdict; for any other, the lab is the only remedy."""

REPORTED = {
    r"no destination can be reached at (?P<address>\S+):": (
        "start one with: pyvmm run --incoming {address}"
    ),
    r" is not trusted: ": REMEDIES[sockets.PeerUntrusted],
    r"^the TLS key .* is encrypted": REMEDIES[sockets.TlsKeyEncrypted],
    r"^the TLS files cannot be used": REMEDIES[sockets.TlsFilesUnusable],
    r" is a file, but not a snapshot,": REMEDIES[snapshot.SnapshotPathInUse],
    r"^cannot write the snapshot ": REMEDIES[snapshot.SnapshotNotWritten],
    r"the host lets this process start no more threads$": (
        f"{REMEDIES[ThreadNotStarted]}, where the guest is started"
    ),
    r"^There is a snapshot in process|^There's a migration process in progress": (
        "see its progress with: pyvmm status"
    ),
    r"^This pyvmm was built without the checksum xxh3": (
        "give --checksum crc32c, or build pyvmm where libxxhash-dev is installed"
    ),
    r"^Pages without a checksum are sent over unix sockets only": "give --checksum crc32c",
    r"^the destination has aborted: this pyvmm has no checksum ": "give --checksum crc32c",
    r"the source sends version [45] of the migration stream; ": "give --streams 1, the default",
    r"^The guest has migrated": "give the control socket of the destination",
    r"^the guest is paused and cannot respond": "let it run with: pyvmm cont",
    r"^a vCPU has not left the guest within ": REMEDIES[VcpuNotStopped],
    r"^the guest runs no balloon driver(?: with STATS_VQ)?$": (
        "wait until it has booted, or load virtio_balloon in it"
    ),
    r"^the guest runs no balloon driver with MISC_VQ": (
        "boot a guest.img that 'pyvmm image build' made, with its own dialect"
    ),
    r"^No balloon device has been activated": (
        "start QEMU with -device virtio-balloon-pci,id=balloon0"
    ),
    r"^The command \S+ has not been found": "the guest runs in QEMU or another version of pyvmm",
}
"""Remedies of messages from the control socket, by a regular expression that finds the message."""


def with_remedy(error: UserError) -> str:
    """Return the line that the command line prints for `error`: "MESSAGE; REMEDY"."""
    return "; ".join(filter(None, (str(error), remedy(error))))


def remedy(error: UserError) -> str:
    """Return what corrects `error` and the errors that caused it; empty if nothing is known."""
    remedies = []
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            remedies.append(_remedy(cause))
        cause = cause.__cause__
    return "; ".join(filter(None, reversed(remedies)))


def reported_remedy(message: str) -> str:
    """Return what corrects an error with this `message` of the control socket, or ""."""
    for pattern, text in REPORTED.items():
        if found := re.search(pattern, message):
            return text.format(**found.groupdict())
    return ""


def _remedy(error: UserError) -> str:
    match error:
        case CommandError():
            return error.remedy
        case RequestFailed():
            return reported_remedy(error.reported) or f"see '{error.command} --help'"
        case InvalidConfiguration():
            return f"change {PARAMETER_OPTIONS[error.parameter]}"
        case boot.NotEnoughRam():
            return f"give the guest more with --memory, at least {-(-error.needed_bytes // MIB)}M"
        case HugePagesUnavailable(pool_pages=None):
            return "leave out --hugepages"
        case HugePagesUnavailable():
            size = f"vm.nr_hugepages={error.pool_pages}"
            return f"reserve them with: sysctl {size}, or leave out --hugepages"
        case image.KernelSourceMissing():
            return f"{_install(error)}, or name a source tree with --source"
        case lab.HostKvmUnusable():
            return KVM_REMEDIES.get(error.verdict, "use --kvm lab")
        case lab.LabKernelUnreadable():
            return f"chmod a+r {error.image}"
        case NotInstalled():
            return _install(error)
        case runtime.NoSuchGuest():
            names = ", ".join(error.running)
            return f"give one of {names}" if names else "start it with: pyvmm run IMAGE --name NAME"
        case sockets.ControlSocketUnreachable():
            address = format_unix_address(error.path)
            return f"start a guest with --qmp {address}, or give the path of a running one"
    return REMEDIES.get(type(error), "")


def _install(error: NotInstalled) -> str:
    return f"apt-get install {' '.join(error.packages)}"
