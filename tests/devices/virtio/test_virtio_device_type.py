# SPDX-License-Identifier: Apache-2.0
"""The base class of virtio devices, seen through a device type of a few lines."""

from __future__ import annotations

from devices.errors import BadPayload
from devices.state import Fields, Payload, Restore
from devices.testing.driver_queue import DriverQueue, Used
from devices.testing.ram import guest_memory
from devices.testing.recorders import RecordingTracer
from devices.virtio import features
from devices.virtio.device import SavedDevice, VirtioDevice
from devices.virtio.queue import QueueSpec, check_in_flight, save_in_flight
from devices.virtio.saved import check_device, save_device
from devices.virtio.status import Status
from pyvmm_native.memory import GuestMemory
from pyvmm_native.ring import Chain


class Echo(VirtioDevice):
    """Returns a request's own bytes; keeps the buffers of requests that contain "later"."""

    def __init__(self, memory: GuestMemory | None = None) -> None:
        self.kept: list[Chain] = []
        super().__init__(
            device_id=99,
            name="echo",
            queues=[QueueSpec("echo", 8, 64)],
            memory=memory or guest_memory(1 << 20),
            tracer=RecordingTracer(),
        )

    def serve(self, queue: int, chain: Chain) -> int | None:
        if chain.readable == b"later":
            self.kept.append(chain)
            return None
        if len(chain.readable) > chain.writable_bytes:
            raise BadPayload("no room")
        return chain.write(chain.readable)

    def save_own_state(self) -> Payload:
        return {"kept": save_in_flight(*self.kept)}

    def check_own_state(self, state: Fields, saved: SavedDevice) -> Restore:
        kept = check_in_flight(state, "kept", saved.queues[0].ring, at_most=8)
        return lambda: self.kept.extend(kept)

    def on_queue_reset(self, queue: int) -> None:
        self.kept.clear()


def running(device: Echo) -> DriverQueue:
    """Bring the device up without any transport."""
    driver = DriverQueue(device.memory, 8)
    for status in (0, 3):
        device.write_status(status)
    device.accept_features(32, features.VERSION_1 >> 32)
    device.write_status(11)
    queue = device.queues[0]
    queue.set_addresses(
        desc_gpa=driver.desc_gpa, driver_gpa=driver.avail_gpa, device_gpa=driver.used_gpa
    )
    device.enable_queue(0)
    device.write_status(15)
    assert device.running
    return driver


def test_a_device_without_a_transport_sends_no_notification() -> None:
    device = Echo()
    driver = running(device)
    driver.add([b"hello"], [16])
    assert not device.process_queue(0)
    assert driver.take_used() == [Used(0, 5, b"hello")]
    device.config_changed()
    assert device.queues[0].counters.interrupts == device.config_notifications == 0


def test_counters_start_at_0_and_count_each_request() -> None:
    device = Echo()
    driver = running(device)
    names = ("requests", "readable_bytes", "bad_payloads", "interrupts")
    assert device.queues[0].counters.save_state() == dict.fromkeys(names, 0)
    driver.add([b"hello"], [16])
    driver.add([b"hello"])
    device.process_queue(0)
    counted = dict(zip(names, (2, 10, 1, 0), strict=True))
    assert device.queues[0].counters.save_state() == counted


def test_an_enabled_queue_is_not_live_before_driver_ok() -> None:
    """VIRTIO 1.2, 2.1.2: the device MUST NOT consume buffers before DRIVER_OK."""
    device = Echo()
    device.accept_features(32, features.VERSION_1 >> 32)
    device.enable_queue(0)
    for status in (1, 3, 11):
        device.write_status(status)
        assert device.queues[0].ring is None
    device.write_status(15)
    assert device.queues[0].ring is not None


def test_a_bad_payload_is_returned_with_length_0() -> None:
    device = Echo()
    driver = running(device)
    driver.add([b"hello"])
    device.process_queue(0)
    assert driver.take_used() == [Used(0, 0, b"")]
    assert device.queues[0].counters.bad_payloads == 1


def test_a_broken_ring_has_no_more_buffers() -> None:
    device = Echo()
    driver = running(device)
    driver.set_avail_ring(0, 8)  # no descriptor has this index
    driver.set_avail_idx(1)
    assert not device.process_queue(0)
    assert device.status & Status.DEVICE_NEEDS_RESET


def test_a_kept_buffer_can_be_returned_until_a_reset() -> None:
    device = Echo()
    driver = running(device)
    driver.add([b"later"], [16])
    device.process_queue(0)
    (chain,) = device.kept
    assert driver.take_used() == []
    device.complete(0, chain, chain.write(b"now"))
    assert driver.take_used() == [Used(0, 3, b"now")]

    driver.add([b"later"], [16])
    device.process_queue(0)
    kept = list(device.kept)
    device.write_status(0)
    device.complete(0, kept[0])
    assert driver.take_used() == []
    device.process_queue(0)  # harmless at any time
    assert device.kept == []


def test_queues_exist_by_number() -> None:
    device = Echo()
    assert device.has_queue(0)
    assert not device.has_queue(1)


def test_the_generation_stays_until_the_configuration_changes() -> None:
    """A driver reads again while it differs (VIRTIO 1.2, 2.5.1)."""
    device = Echo()
    for _ in range(2):
        device.config_changed()
        device.read_config(0, 1)
        generation = device.config_generation
        for _ in range(3):
            device.read_config(0, 1)
            assert device.config_generation == generation


def test_each_generation_of_the_configuration_is_restored() -> None:
    old, new = Echo(), Echo()
    for _ in range(255):
        old.config_changed()
        old.read_config(0, 1)
    assert old.config_generation == 255
    check_device(new, Fields("echo", save_device(old)))()
    assert new.config_generation == 255


def test_a_restored_device_returns_the_buffer_that_the_saved_one_kept() -> None:
    old = Echo()
    driver = running(old)
    driver.add([b"later"], [16])
    old.process_queue(0)
    new = Echo(old.memory)
    check_device(new, Fields("echo", save_device(old)))()
    new.repeat_notifications()  # no transport is connected
    (chain,) = new.kept
    new.complete(0, chain, chain.write(b"now"))
    assert driver.take_used() == [Used(0, 3, b"now")]
