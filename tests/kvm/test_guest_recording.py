# SPDX-License-Identifier: Apache-2.0
"""A recording of a real guest, from its boot to the moment at which its VMM is killed."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm.qmp.client import QmpClient
from pyvmm.trace.recording import Recording
from pyvmm.trace.stream import TraceEvent
from pyvmm.units import MIB
from pyvmm_native import PAGE_BYTES
from tests.kvm.pyvmm_process import RunProcess

pytestmark = pytest.mark.kvm

RAM, TARGET = 256 * MIB, 128 * MIB


def test_a_boot_and_an_inflate_are_recorded_until_the_vmm_is_killed(
    guest_image: Path, directory: Path, figure: Callable[[str], None]
) -> None:
    qmp, path = directory / "qmp", directory / "boot.rec"
    options = ("--memory", RAM, "--append", 'loglevel=4 pyvmm.run="pattern"')
    with RunProcess(
        guest_image, *options, "--qmp", f"unix:{qmp}", "--record", path, "--record-exits", 50
    ) as guest:
        guest.expect("user space up")
        with QmpClient(qmp) as client:
            client.execute("balloon", value=TARGET)
            deadline = time.monotonic() + 60
            while int(client.execute("query-balloon")["actual"]) != TARGET:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        time.sleep(1)
        guest.send_signal(signal.SIGKILL)
        guest.status()
    with Recording(path) as recording:
        events = list(recording.events())
        size, dropped = recording.chunk_bytes, recording.dropped
        ram_bytes = recording.description["ram-bytes"]
    assert (dropped, ram_bytes) == (0, RAM)
    assert [event.seq for event in events] == [*range(len(events))]
    check_balloon([event for event in events if event.device == "balloon"])
    check_exits(events)
    figure(
        f"recording of a boot and an inflate of {TARGET // MIB} MiB: {len(events)} events,"
        f" {size} bytes, {size / len(events):.2f} bytes an event"
    )


def check_balloon(events: list[TraceEvent]) -> None:
    names = [str(event.fields["names"]) for event in events if event.kind == "status"]
    assert "ACKNOWLEDGE|DRIVER|DRIVER_OK|FEATURES_OK" in names
    live = {event.queue for event in events if event.kind == "queue_live"}
    assert {"inflate", "deflate"} <= live
    pages = [int(event.fields["pages"]) for event in events if event.kind == "inflate"]
    assert sum(pages) * PAGE_BYTES >= RAM - TARGET
    (target,) = [event.fields["pages"] for event in events if event.kind == "target"]
    assert target == (RAM - TARGET) // PAGE_BYTES
    inflate = Counter(event.kind for event in events if event.queue == "inflate")
    assert inflate["chain"] == inflate["used"] == len(pages)
    assert inflate["descriptor"] >= inflate["chain"]
    assert 0 < inflate["notified"] <= inflate["chain"] + 1
    sent = [
        event
        for event in events
        if event.kind == "interrupt" and event.fields["cause"] == "inflate"
    ]
    assert {event.fields["how"] for event in sent} == {"msi-x"}
    decisions = [event for event in events if event.kind == "used_notification"]
    assert sum(
        event.queue == "inflate" and bool(event.fields["sent"]) for event in decisions
    ) == len(sent)


def check_exits(events: list[TraceEvent]) -> None:
    (*_, last) = [event.fields for event in events if event.kind == "vm_exits"]
    accesses = Counter(
        event.kind for event in events if event.kind.startswith(("register_", "unclaimed_"))
    )
    # The rest are exits that are no accesses of a register table, and those since the last count.
    served = int(last["fast_path"]) + int(last["pio"]) + int(last["mmio"])
    assert served > accesses.total() / 2
    sampled = sum(event.kind == "vm_exit" for event in events)
    assert abs(sampled - sum(map(int, last.values())) / 50) < 50
    registers = {event.fields["register"] for event in events if event.device == "uart"}
    assert {"lsr", "rbr_thr_dll"} <= registers
