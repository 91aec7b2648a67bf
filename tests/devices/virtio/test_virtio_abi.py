# SPDX-License-Identifier: Apache-2.0
"""Numbers of the virtio devices against the installed `linux/virtio_*.h`."""

from devices.balloon import bitmap, dialects
from devices.balloon.config import config_space
from devices.balloon.device import DEVICE_ID
from devices.testing.balloon.driver import BalloonBoard
from devices.testing.driver import COMMON
from devices.testing.recorders import RecordingTracer
from devices.virtio import features, pci_interrupts, pci_transport, pci_window
from devices.virtio.status import Status
from tests.c_layout import Fact, mismatches

HEADERS = (
    "linux/virtio_balloon.h",
    "linux/virtio_config.h",
    "linux/virtio_ids.h",
    "linux/virtio_pci.h",
    "linux/virtio_ring.h",
)

COMMON_CFG = "((struct virtio_pci_common_cfg *)0)->"

# Names in the header of common configuration fields that the specification names differently.
C_NAMES = {
    "driver_feature_select": "guest_feature_select",
    "driver_feature": "guest_feature",
    "config_msix_vector": "msix_config",
    "queue_driver_lo": "queue_avail_lo",
    "queue_driver_hi": "queue_avail_hi",
    "queue_device_lo": "queue_used_lo",
    "queue_device_hi": "queue_used_hi",
    "queue_desc": "queue_desc_lo",
    "queue_driver": "queue_avail_lo",
    "queue_device": "queue_used_lo",
}


def test_status_and_feature_bits() -> None:
    status = [
        Fact(f"VIRTIO_CONFIG_S_{'NEEDS_RESET' if 'NEEDS' in bit.name else bit.name}", bit.value)
        for bit in Status
        if bit.name
    ]
    assert len(status) == 6
    transport = [
        Fact("1ULL << VIRTIO_RING_F_INDIRECT_DESC", features.INDIRECT_DESC),
        Fact("1ULL << VIRTIO_RING_F_EVENT_IDX", features.EVENT_IDX),
        Fact("1ULL << VIRTIO_F_VERSION_1", features.VERSION_1),
        Fact("1ULL << VIRTIO_F_RING_RESET", features.RING_RESET),
    ]
    balloon = [
        Fact(f"1 << VIRTIO_BALLOON_F_{name.replace('PAGE_REPORTING', 'REPORTING')}", bit)
        for bit, name in dialects.STANDARD.features.names.items()
    ]
    assert mismatches(HEADERS, [*status, *transport, *balloon]) == []


def test_common_configuration_of_the_device() -> None:
    registers = BalloonBoard(dialects.STANDARD).transport.common.registers
    *first, queue_reset = registers
    facts = [
        Fact(
            f"offsetof(struct virtio_pci_common_cfg, {C_NAMES.get(register.name, register.name)})",
            register.offset,
        )
        for register in first
    ]
    assert queue_reset.size == 2, "le16 (VIRTIO 1.2, 4.1.4.3), not in the header's structure"
    facts += [
        Fact("sizeof(struct virtio_pci_common_cfg)", first[-1].end),
        Fact("VIRTIO_PCI_COMMON_Q_RESET", queue_reset.offset),
    ]
    assert mismatches(HEADERS, facts) == []


def test_sizes_of_the_common_configuration_of_the_device() -> None:
    registers = list(BalloonBoard(dialects.STANDARD).transport.common.registers)[:-1]
    facts = []
    for register in registers:
        name = C_NAMES.get(register.name, register.name)
        halves = [name, name.replace("_lo", "_hi")] if name.endswith("_lo") else [name]
        facts.append(Fact(" + ".join(f"sizeof({COMMON_CFG}{n})" for n in halves), register.size))
    assert mismatches(HEADERS, facts) == []


def test_common_configuration_of_the_test_driver() -> None:
    facts = []
    for name, (offset, size) in COMMON.items():
        c_name = C_NAMES.get(name, name)
        if name == "queue_reset":  # not part of a structure in these headers
            continue
        facts.append(Fact(f"offsetof(struct virtio_pci_common_cfg, {c_name})", offset))
        facts.append(Fact(f"sizeof({COMMON_CFG}{c_name})", size))
    assert mismatches(HEADERS, facts) == []


def test_capabilities() -> None:
    facts = [
        Fact("VIRTIO_PCI_CAP_COMMON_CFG", pci_transport.CAP_COMMON_CFG),
        Fact("VIRTIO_PCI_CAP_NOTIFY_CFG", pci_transport.CAP_NOTIFY_CFG),
        Fact("VIRTIO_PCI_CAP_ISR_CFG", pci_transport.CAP_ISR_CFG),
        Fact("VIRTIO_PCI_CAP_DEVICE_CFG", pci_transport.CAP_DEVICE_CFG),
        Fact("sizeof(struct virtio_pci_cfg_cap) - 2", pci_window.BODY_BYTES),
        Fact("VIRTIO_MSI_NO_VECTOR", pci_interrupts.NO_VECTOR),
        Fact("VIRTIO_PCI_ISR_CONFIG", pci_interrupts.ISR_CONFIG),
    ]
    assert mismatches(HEADERS, facts) == []


def test_balloon_configuration() -> None:
    standard = dialects.STANDARD
    registers = config_space(
        standard, standard.features.known, lambda pages: None, RecordingTracer()
    )
    assert len(list(registers)) == 4
    facts = [
        Fact(f"offsetof(struct virtio_balloon_config, {register.name})", register.offset)
        for register in registers
    ]
    facts += [
        Fact("VIRTIO_ID_BALLOON", DEVICE_ID),
        Fact("VIRTIO_BALLOON_PFN_SHIFT", bitmap.PAGE_SHIFT),
    ]
    assert mismatches(HEADERS, facts) == []
