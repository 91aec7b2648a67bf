# SPDX-License-Identifier: Apache-2.0
"""Addresses as users write them, valid and malformed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.errors import UserError
from pyvmm.sockets.addresses import (
    TcpAddress,
    UnixAddress,
    format_unix_address,
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
        ("unix:/a,,b,,,,c", "/a,b,,c"),
        ("unix:/a,,,server=on,wait=off", "/a,"),
    ],
)
def test_unix_addresses_are_parsed(text: str, path: str) -> None:
    assert parse_unix_address(text) == Path(path)


@pytest.mark.parametrize(
    "text",
    [
        *("", "/tmp/vm", "unix:", "unix", "tcp:localhost:1", "unix:a,wait=on", "unix:a\0b"),
        *("unix:,", "unix:/a,b", "unix:/a,", "unix:/a,,server=on,b"),
        *("unix:/" + "x" * 107, "unix:/" + "é" * 54),
    ],
)
def test_malformed_unix_addresses_are_refused(text: str) -> None:
    with pytest.raises(UserError):
        parse_unix_address(text)


@pytest.mark.parametrize("path", ["/a", "/a,b", "/,,", "/a,server=on"])
def test_a_formatted_address_is_parsed_as_its_path(path: str) -> None:
    assert parse_unix_address(format_unix_address(Path(path))) == Path(path)


def test_the_error_says_how_to_write_a_comma() -> None:
    with pytest.raises(UserError, match="expected unix:PATH, with ,, for a comma in PATH"):
        parse_unix_address("unix:/tmp/a,b")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp:localhost:4444", TcpAddress("localhost", 4444)),
        ("tcp:[::1]:0", TcpAddress("::1", 0)),
        ("unix:/tmp/m", UnixAddress(Path("/tmp/m"))),
        ("unix:/tmp/a,b,,c,server=on", UnixAddress(Path("/tmp/a,b,,c,server=on"))),
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
        *("tcp:::1:4444", "tcp:h:²", "unix:", "unix:/x\0", "exec:cat", "unix:" + "x" * 200),
    ],
)
def test_malformed_migration_addresses_are_refused(text: str) -> None:
    with pytest.raises(UserError):
        parse_migration_address(text)
