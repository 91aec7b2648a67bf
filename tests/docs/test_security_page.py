# SPDX-License-Identifier: Apache-2.0
"""The limits in docs/security.md are those of the code."""

from __future__ import annotations

import re

import pytest

from devices.balloon import bitmap, misc, records
from devices.console.names import MAX_PORTS
from devices.console.port import MAX_WRITE_BYTES
from devices.virtio import device
from pyvmm.qmp import connection, json_stream, server
from pyvmm.scope.connections import MAX_CONNECTIONS
from pyvmm.scope.history import MAX_HISTORY_BYTES
from pyvmm.scope.server import MAX_MESSAGE_BYTES
from pyvmm.trace import watch
from pyvmm.units import MIB
from pyvmm_native import events
from tests.project.sources import ROOT

PAGE = (ROOT / "docs" / "security.md").read_text()


@pytest.mark.parametrize(
    ("bound", "value"),
    [
        (
            "buffers, bytes of one call of a queue",
            f"{device.BUFFERS_PER_CALL} buffers or {device.BYTES_PER_CALL // 1024} KiB",
        ),
        (
            "the same, of valid inflate and deflate requests",
            f"{device.REQUESTS_PER_CALL} requests or {device.BYTES_PER_CALL // 1024} KiB",
        ),
        (
            "the same, of a port's output",
            f"{device.STREAM_BUFFERS_PER_CALL} buffers or {MAX_WRITE_BYTES // MIB} MiB",
        ),
        (
            "connections to the scope; message of its page; events kept for its pages",
            f"{MAX_CONNECTIONS}; {MAX_MESSAGE_BYTES // 1024} KiB; {MAX_HISTORY_BYTES // MIB} MiB",
        ),
        (
            "ports of the console device; bytes of one buffer that it transmits",
            f"{MAX_PORTS}; {MAX_WRITE_BYTES // MIB} MiB",
        ),
        (
            "bitmap or records of a balloon message; messages of a response",
            f"{bitmap.MAX_BITMAP_BYTES // MIB} MiB; {misc.MAX_MESSAGES:,}",
        ),
        ("events that wait to be recorded or watched", f"{events.HALF_BYTES // MIB} MiB"),
        (
            "message on the control socket",
            f"{json_stream.MAX_MESSAGE_BYTES // MIB} MiB, {json_stream.MAX_DEPTH} levels of "
            f"nesting, {json_stream.MAX_TOKENS} tokens",
        ),
        ("clients of the control socket", str(server.MAX_CLIENTS)),
        (
            "unread output of a client when there is an event",
            f"{connection.MAX_UNSENT_BYTES // MIB} MiB",
        ),
        ("events that wait for a client that watches", f"{watch.MAX_WAITING_BYTES // MIB} MiB"),
    ],
)
def test_a_limit_is_that_of_the_code(bound: str, value: str) -> None:
    (shown,) = re.findall(rf"^\| {re.escape(bound)} \| (.*) \|$", PAGE, re.MULTILINE)
    assert shown == value


def test_records_are_limited_as_bitmaps_are() -> None:
    assert records.MAX_DATA_BYTES == bitmap.MAX_BITMAP_BYTES
