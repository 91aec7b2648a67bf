# SPDX-License-Identifier: Apache-2.0
"""Console: the speed of a stream between a program in the guest and one outside.

Each contender's guest is launched once (see `bench.launch`) and runs `SERVE`, a shell loop that
transfers blocks on request, out of the guest or into it:

    pyvmm            a named port (`--port`) at a unix socket
    pyvmm, command   standard input and output of `pyvmm run -- COMMAND`, which are pipes
    QEMU pc          virtio-serial at a unix socket

The time is taken outside, from the request until the last byte has arrived: of the data, or of the
guest's confirmation that it has read everything. For each contender alike the guest's driver
copies 32 KiB at a time out of it and 4 KiB into it. A command's bytes pass the guest's agent and a
pipe in addition.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench.launch import MEMORY, TIMEOUT_S, LaunchedGuest, in_memory
from bench.measure import TOTAL, Case, Contender, Plan, Values, take_turns
from guest_images.build import build_image
from pyvmm.errors import UserError
from pyvmm.units import MIB

RAM_MIB = 256
SIZE_MIB, QUICK_SIZE_MIB = 32, 4
ROUNDS = 5
LIMIT_S = 150
"""For each case; in a slow lab there are fewer rounds."""
CHUNK_BYTES = 1 << 18
DONE = b"done\n"
BLOCK_BYTES = 1 << 16

# Descriptor 3 is the port; `read` takes no byte beyond the line.
SERVE = (
    "while read -r way count <&3; do case $way in"
    f" out) dd if=/dev/zero bs={BLOCK_BYTES} count=$count 2>/dev/null >&3;;"
    f" into) dd of=/dev/null bs={BLOCK_BYTES} iflag=fullblock count=$count 2>/dev/null <&3;"
    " echo done >&3;; esac; done"
)
SERVE_PORT = f"until ls /dev/vport*p1 2>/dev/null; do :; done; exec 3<>$(ls /dev/vport*p1); {SERVE}"
SERVE_COMMAND = SERVE.replace("<&3", "<&0").replace(">&3", ">&1")


class Stream(NamedTuple):
    """Our end of a contender's stream: descriptors to read from and to write to."""

    reader: int
    writer: int


def measure(plan: Plan) -> list[Case]:
    """Measure a case for each direction, with all guests running."""
    blocks = (QUICK_SIZE_MIB if plan.quick else SIZE_MIB) * MIB // BLOCK_BYTES
    cases = [Case(name, "ms/MiB", "QEMU pc") for name in ("out of the guest", "into the guest")]
    with ExitStack() as stack:
        image = stack.enter_context(in_memory(build_image(progress=plan.progress)))
        guest = LaunchedGuest(image, RAM_MIB, 1)
        streams = {
            name: stack.enter_context(stream)
            for name, stream in {
                "pyvmm": _port(guest, "pyvmm"),
                "pyvmm, command": _command(guest),
                "QEMU pc": _port(guest, "QEMU pc"),
            }.items()
        }
        for stream in streams.values():
            _into(stream, 1)  # the guest has booted
        for case, transfer in zip(cases, (_out, _into), strict=True):
            contenders: dict[str, Contender] = {
                name: partial(transfer, stream, blocks) for name, stream in streams.items()
            }
            rounds = plan.rounds(ROUNDS)
            take_turns(case, contenders, rounds, plan, warm_up=not plan.quick, limit_s=LIMIT_S)
    return cases


@contextmanager
def _port(guest: LaunchedGuest, vmm: str) -> Iterator[Stream]:
    """Launch a guest that serves its port; provide a connection to that."""
    run = f'pyvmm.run="{SERVE_PORT}"'
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        path = Path(directory, "port")
        if vmm == "pyvmm":
            argv = [*guest.pyvmm("-m", "pyvmm"), "--port", f"data=unix:{path}", "--append", run]
        else:
            argv = [
                *guest.qemu(vmm, append=run),
                *("-chardev", f"socket,id=data,path={path},server=on,wait=off"),
                *("-device", "virtio-serial-pci", "-device", "virtserialport,chardev=data"),
            ]
        with (
            _launched(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process,
            _connect(path, process) as connection,
        ):
            yield Stream(connection.fileno(), connection.fileno())


def _connect(path: Path, process: subprocess.Popen[bytes]) -> socket.socket:
    """Connect to the socket at `path`, once `process` listens there."""
    connection = socket.socket(socket.AF_UNIX)
    deadline = time.monotonic() + TIMEOUT_S
    while connection.connect_ex(os.fspath(path)):
        if process.poll() is not None or time.monotonic() > deadline:
            raise UserError(f"{process.args!r} does not listen at {path}")
        time.sleep(0.05)
    return connection


@contextmanager
def _command(guest: LaunchedGuest) -> Iterator[Stream]:
    """Launch a guest with a command that serves its standard input and output."""
    argv = [*guest.pyvmm("-m", "pyvmm"), "--", "sh", "-c", SERVE_COMMAND]
    with _launched(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Stream(process.stdout.fileno(), process.stdin.fileno())


@contextmanager
def _launched(argv: list[str], stdin: int, stdout: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(argv, stdin=stdin, stdout=stdout, cwd=MEMORY, bufsize=0)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _out(stream: Stream, blocks: int) -> Values:
    begin = time.monotonic()
    _send(stream, b"out %d\n" % blocks)
    _receive(stream, blocks * BLOCK_BYTES)
    return _per_mib(begin, blocks)


def _into(stream: Stream, blocks: int) -> Values:
    data = bytes(BLOCK_BYTES)
    begin = time.monotonic()
    _send(stream, b"into %d\n" % blocks)
    for _ in range(blocks):
        _send(stream, data)
    _receive(stream, len(DONE))
    return _per_mib(begin, blocks)


def _per_mib(begin: float, blocks: int) -> Values:
    """Return the milliseconds per MiB since `begin`."""
    return {TOTAL: (time.monotonic() - begin) * 1000 * MIB / (blocks * BLOCK_BYTES)}


def _send(stream: Stream, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(stream.writer, rest) :]


def _receive(stream: Stream, size_bytes: int) -> None:
    """Read `size_bytes`. Raises UserError if the stream ends before that."""
    buffer = memoryview(bytearray(CHUNK_BYTES))
    while size_bytes:
        received = os.readv(stream.reader, [buffer[:size_bytes]])
        if not received:
            raise UserError(f"the guest's stream has ended, {size_bytes} bytes early")
        size_bytes -= received
