# SPDX-License-Identifier: Apache-2.0
"""The registers of a virtio PCI device as they are at the moment, decoded for people.

Nothing here changes the device: registers that reading changes are peeked at, and no event is
emitted. It works for every device of the catalogue, by its register tables, its PCI function and
its queues (PCI Local Bus 3.0, 6.1 and 6.7; VIRTIO 1.2, 4.1.4). The values are JSON's: the command
`x-query-pci-registers` returns them as they are.
"""

from __future__ import annotations

import base64
import struct
from typing import TYPE_CHECKING, Any

from devices.pci.msix import CAPABILITY_ID as MSIX_CAPABILITY_ID
from devices.virtio import features
from devices.virtio.pci_transport import CAP_ID_VENDOR

if TYPE_CHECKING:
    from devices.pci.capability import Capability
    from devices.virtio.pci_transport import VirtioPciTransport
    from devices.virtio.queue import DeviceQueue

_CFG_TYPES = {1: "common", 2: "notify", 3: "isr", 4: "device", 5: "pci-access"}


def pci_registers(transport: VirtioPciTransport) -> dict[str, Any]:
    """Return the registers of `transport`; hold the device lock."""
    function, device = transport.function, transport.device
    return {
        "config": base64.b64encode(function.peek_config()).decode(),
        "bars": [
            {
                "index": bar.number,
                "address": bar.address,
                "size": bar.size_bytes,
                "decoded": bar.decoded,
            }
            for bar in function.bars
        ],
        "capabilities": [_capability(each) for each in function.capabilities],
        "msix": [
            {
                "vector": vector,
                "address": entry.address,
                "data": entry.data,
                "masked": entry.masked,
                "pending": entry.pending,
            }
            for vector, entry in enumerate(transport.msix.entries())
        ],
        "registers": [
            {
                "table": table.name,
                "register": register.name,
                "offset": register.offset,
                "size": register.size,
                "value": value,
            }
            for table in transport.tables
            for register, value in table.peek()
        ],
        "features": {
            "offered": device.offered,
            "accepted": device.accepted,
            "offered-names": _names(transport, device.offered),
            "accepted-names": _names(transport, device.accepted),
        },
        "properties": dict(device.compatibility_key()),
        "queues": [_queue(queue) for queue in device.queues],
    }


def _names(transport: VirtioPciTransport, mask: int) -> str:
    return features.names(mask, transport.device.feature_names)


def _capability(capability: Capability) -> dict[str, Any]:
    found = {"offset": capability.offset, "id": capability.cap_id, "name": "other", "fields": {}}
    body = capability.peek()
    if capability.cap_id == MSIX_CAPABILITY_ID:
        control, table, pba = struct.unpack_from("<HII", body)
        return {
            **found,
            "name": "msi-x",
            "fields": {"message-control": control, "table": table, "pba": pba},
        }
    if capability.cap_id != CAP_ID_VENDOR:
        return found
    cap_len, cfg_type, bar, offset, length = struct.unpack_from("<BBBxxxII", body)
    fields = {"cap-len": cap_len, "bar": bar, "offset": offset, "length": length}
    return {**found, "name": f"virtio {_CFG_TYPES.get(cfg_type, cfg_type)}", "fields": fields}


def _queue(queue: DeviceQueue) -> dict[str, Any]:
    ring = queue.ring
    in_use = []
    if ring is not None:
        in_use += ["EVENT_IDX"] * ring.event_idx + ["INDIRECT_DESC"] * ring.indirect
    return {
        "index": queue.index,
        "name": queue.spec.name,
        "size": queue.size,
        "enable": queue.enabled,
        "live": ring is not None,
        "desc": queue.desc_gpa,
        "driver": queue.driver_gpa,
        "device": queue.device_gpa,
        "next-avail": 0 if ring is None else ring.next_avail,
        "used-idx": 0 if ring is None else ring.next_used,
        "features": in_use,
    }
