# SPDX-License-Identifier: Apache-2.0
"""Check of chapter 3: the driver negotiates with devices that accept and with one that refuses."""

from __future__ import annotations

from typing import Any

from devices.testing import AnonymousRam, Board, RecordingTracer, VirtioDriver
from devices.virtio.device import VirtioDevice
from devices.virtio.features import names
from devices.virtio.queue import QueueSpec
from devices.virtio.status import Status
from pyvmm.learn.checking import expect
from pyvmm_native.ring import Chain

VERSION_1, EVENT_IDX = 1 << 32, 1 << 29
STEPS = [0, 1, 3, 11, 15]
"""Values of the device status that a driver writes: 3.1.1."""


class ExampleDevice(VirtioDevice):
    """A device that offers bits 0 and 3 of its own, and refuses bit 0 without bit 3 if `strict`."""

    def __init__(self, *, strict: bool) -> None:
        self.strict = strict
        super().__init__(
            device_id=63,
            name="example",
            queues=[QueueSpec("requestq")],
            memory=AnonymousRam().memory,
            tracer=RecordingTracer(),
            offered=0b1001,
        )

    def feature_refusal(self, accepted: int) -> str | None:
        """Return why the features are refused: a strict device needs bit 3 for bit 0."""
        if self.strict and accepted & 0b1001 == 0b0001:
            return "bit 0 without bit 3"
        return super().feature_refusal(accepted)

    def serve(self, queue: int, chain: Chain) -> int:
        """Return the buffer."""
        return 0


class _Common:
    """The common configuration of `device`; keeps the values written to the device status."""

    def __init__(self, device: ExampleDevice) -> None:
        self.driver = VirtioDriver(Board(device)).probe()
        self.statuses: list[int] = []

    def read(self, name: str) -> int:
        return self.driver.read_common(name)

    def write(self, name: str, value: int) -> None:
        if name == "device_status":
            self.statuses.append(value)
        self.driver.write_common(name, value)


def check(exercise: Any) -> None:
    """Check `initialise` of the module `exercise`."""
    for known in (VERSION_1 | EVENT_IDX | 0b1001, VERSION_1 | 0b1010, VERSION_1):
        _check_agreement(exercise, known)
    _check_refusal(exercise)


def _check_agreement(exercise: Any, known: int) -> None:
    device = ExampleDevice(strict=False)
    common = _Common(device)
    seen: list[tuple[int, int]] = []

    def set_up_queues(features: int) -> None:
        seen.append((features, int(device.status)))
        common.driver.set_up_queue(0)

    expected = known & device.offered
    try:
        features = exercise.initialise(common, known, set_up_queues)
    except exercise.NegotiationFailed:
        expect(
            False,
            f"The device offers {names(device.offered, {})} and the driver knows"
            f" {names(known, {})}. It was to accept {names(expected, {})}, and the device has seen"
            f" {names(device.accepted, {})} in driver_feature. Which register selects the half that"
            " driver_feature shows? (VIRTIO 1.2, 4.1.4.3)",
        )
    expect(
        device.accepted == expected,
        f"The device offers {names(device.offered, {})}, the driver knows {names(known, {})}, and"
        f" has accepted {names(device.accepted, {})}. A driver accepts those features that both"
        " have, as the device will act on each of them (VIRTIO 1.2, 2.2).",
    )
    expect(features == expected, f"`initialise` has returned {features:#x}, not {expected:#x}.")
    expect(
        common.statuses == STEPS,
        f"The driver has written {common.statuses} to the device status. The steps of VIRTIO 1.2,"
        f" 3.1.1 are {STEPS}: reset, ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK, each added to"
        " those before.",
    )
    agreed = int(Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK)
    expect(
        seen == [(expected, agreed)],
        "Queues are set up once, between FEATURES_OK and DRIVER_OK, with the features negotiated:"
        f" the calls (features, device status) were {seen}.",
    )


def _check_refusal(exercise: Any) -> None:
    device = ExampleDevice(strict=True)
    common = _Common(device)
    calls: list[int] = []
    try:
        exercise.initialise(common, VERSION_1 | 0b0001, calls.append)
    except exercise.NegotiationFailed:
        expect(
            bool(device.status & Status.FAILED),
            "A device has refused the features, and the driver does not use it. It has to say so:"
            " set FAILED (VIRTIO 1.2, 2.1).",
        )
        return
    expect(
        False,
        "A device has refused the features: FEATURES_OK was 0 when read back, and the driver has"
        f" {'set up queues' if calls else 'continued'} all the same. Step 6 of VIRTIO 1.2, 3.1.1:"
        " re-read the device status to ensure that FEATURES_OK is still set.",
    )
