# SPDX-License-Identifier: Apache-2.0
"""Two real guests by their names: listed, resized, watched, killed and ended."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from pyvmm.qmp.client import QmpClient
from pyvmm.runtime_directory.errors import NoSuchGuest
from pyvmm.runtime_directory.guests import find_guest
from pyvmm.units import MIB
from tests.kvm.pyvmm_process import RunProcess, run_pyvmm

pytestmark = pytest.mark.kvm

RAM, TARGET = 192 * MIB, 160 * MIB
BALLOON, RNG = (f"/machine/peripheral/{name}0/virtio-backend" for name in ("balloon", "rng"))


def test_guests_are_controlled_by_their_names(guest_image: Path) -> None:
    options = (guest_image, "--memory", RAM, "--append", 'loglevel=4 pyvmm.run="pattern"')
    with RunProcess(*options, "--name", "web", "--rng") as web, RunProcess(*options) as other:
        web.expect("user space up")
        other.expect("user space up")
        name = f"{guest_image.stem}-1"
        resized = run_pyvmm("balloon", TARGET, "--vm", "web", "--force")
        assert resized.returncode == 0, resized.stderr
        guests = {guest["name"]: guest for guest in listed("top", "--interval", 1)}
        assert (guests["web"]["actual"], guests[name]["actual"]) == (TARGET, RAM)
        assert guests[name]["status"] == "running"
        assert guests["web"]["rss"] > 16 * MIB
        assert guests["web"]["exits"].keys() >= {"pio", "mmio"}
        assert guests["web"]["requests"].keys() == {"balloon", "rng"}
        with QmpClient(find_guest("web").socket) as client:
            assert_queues_are_shown(client)

        other.send_signal(signal.SIGKILL)
        assert other.status() == -signal.SIGKILL
        assert [guest["name"] for guest in listed("ps")] == ["web"]
        assert run_pyvmm("quit", "--vm", "web").returncode == 0
        assert web.status() == 0
        with pytest.raises(NoSuchGuest, match="no running guest is called web"):
            find_guest("web")


def listed(*arguments: object) -> list[dict[str, Any]]:
    done = run_pyvmm(*arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    guests: list[dict[str, Any]] = json.loads(done.stdout)["guests"]
    return guests


def assert_queues_are_shown(client: QmpClient) -> None:
    """Check what the queries show of Linux' drivers: of a balloon that has inflated, and rng's."""
    assert client.execute("x-query-virtio") == [
        {"name": "virtio-balloon", "path": BALLOON},
        {"name": "virtio-rng", "path": RNG},
    ]
    status = client.execute("x-query-virtio-status", path=BALLOON)
    assert "VIRTIO_CONFIG_S_DRIVER_OK" in status["status"]["statuses"]
    assert "VIRTIO_F_VERSION_1" in status["guest-features"]["transports"]
    inflate = client.execute("x-query-virtio-queue-status", path=BALLOON, queue=0)
    assert inflate["used-idx"] == inflate["last-avail-idx"] == inflate["shadow-avail-idx"] > 0
    last = inflate["used-idx"] - 1
    element = client.execute("x-query-virtio-queue-element", path=BALLOON, queue=0, index=last)
    assert element["avail"]["idx"] == element["used"]["idx"] == inflate["used-idx"]
    assert sum(each["len"] for each in element["descs"]) > 0
    request = client.execute("x-query-virtio-queue-element", path=RNG, queue=0)
    assert request["name"] == "virtio-rng"
