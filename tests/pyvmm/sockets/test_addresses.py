# SPDX-License-Identifier: Apache-2.0
"""Addresses as users write them, valid and malformed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.errors import UserError
from pyvmm.sockets.addresses import (
    TcpAddress,
    UnixAddress,
    parse_migration_address,
    parse_unix_address,
)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("unix:/tmp/vm.sock", "/tmp/vm.sock"),
        ("unix:vm.sock", "vm.sock"),
        ("unix:/tmp/vm,server=on,wait=off", "/tmp/vm"),
        ("unix:/tmp/vm,server,nowait", "/tmp/vm"),
        ("unix:/" + "x" * 106, "/" + "x" * 106),
    ],
)
def test_unix_addresses_are_parsed(text: str, path: str) -> None:
    assert parse_unix_address(text) == Path(path)


@pytest.mark.parametrize(
    "text",
    [
        *("", "/tmp/vm", "unix:", "unix", "tcp:localhost:1", "unix:a,wait=on", "unix:a\0b"),
        *("unix:/" + "x" * 107, "unix:/" + "é" * 54),
    ],
)
def test_malformed_unix_addresses_are_refused(text: str) -> None:
    with pytest.raises(UserError):
        parse_unix_address(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp:localhost:4444", TcpAddress("localhost", 4444)),
        ("tcp:[::1]:0", TcpAddress("::1", 0)),
        ("unix:/tmp/m", UnixAddress(Path("/tmp/m"))),
    ],
)
def test_migration_addresses_are_parsed_and_printed_alike(
    text: str, address: TcpAddress | UnixAddress
) -> None:
    assert parse_migration_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "tcp:", "tcp:host", "tcp::1", "tcp:host:", "tcp:host:x", "tcp:host:65536"),
        *("tcp:::1:4444", "tcp:h:²", "unix:", "unix:/x,server=on", "exec:cat", "unix:" + "x" * 200),
    ],
)
def test_malformed_migration_addresses_are_refused(text: str) -> None:
    with pytest.raises(UserError):
        parse_migration_address(text)
