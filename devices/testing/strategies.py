# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies for tests of device models; needs `pip install "pyvmm-kvm[hypothesis]"`.

Nothing else in `devices.testing` imports Hypothesis.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from devices.state import Payload, Value
from devices.testing.driver_queue import DriverQueue
from devices.testing.states import mutable_copy, payload_items

buffer_elements: st.SearchStrategy[tuple[list[bytes], list[int]]] = st.tuples(
    st.lists(st.binary(max_size=300), max_size=6), st.lists(st.integers(0, 300), max_size=6)
)
"""(readable, writable) for `DriverQueue.add`: up to 6 elements of 0 to 300 bytes each way."""


@dataclass(frozen=True)
class RingContents:
    """Contents of the parts of a ring that the driver writes, valid or not."""

    descriptors: list[tuple[int, int, int, int]]
    """(gpa, length, flags, next) from index 0 on."""
    heads: list[int]
    """Elements of the available ring."""
    avail_idx: int
    """Index of the available ring."""
    used_event: int
    """Threshold of interrupts, with EVENT_IDX."""

    def write_to(self, queue: DriverQueue) -> None:
        """Overwrite the ring of `queue`; the available index comes last."""
        for index, (gpa, length, flags, next_) in enumerate(self.descriptors):
            queue.set_desc(index, gpa, length, flags, next_)
        for slot, head in enumerate(self.heads):
            queue.set_avail_ring(slot, head)
        queue.set_used_event(self.used_event)
        queue.set_avail_idx(self.avail_idx)


def ring_contents(size: int, ram_bytes: int) -> st.SearchStrategy[RingContents]:
    """Return hostile contents of a ring of `size` entries in a guest with `ram_bytes` at address 0.

    Indices, lengths and addresses are near their limits, inside and outside the ring and RAM.
    """
    index = st.integers(0, size + 4) | st.integers(0, 0xFFFF)
    gpa = (
        st.integers(0, ram_bytes)
        | st.integers(ram_bytes - 64, ram_bytes + 64)
        | st.integers(0, (1 << 64) - 1)
    )
    length = st.integers(0, 128) | st.integers(0, (1 << 32) - 1)
    descriptor = st.tuples(gpa, length, st.integers(0, 7), index)
    return st.builds(
        RingContents,
        st.lists(descriptor, max_size=size),
        st.lists(index, max_size=size),
        index,
        index,
    )


hostile_values: st.SearchStrategy[Value] = (
    st.integers(-(1 << 63), (1 << 64) - 1)
    | st.sampled_from([0, 1, 2, 255, 256, 65535, 65536, (1 << 32) - 1, 1 << 32])
    | st.booleans()
    | st.binary(max_size=40)
    | st.sampled_from(["", "standard", "bitmap", "x"])
    | st.lists(st.integers(0, 300), max_size=4)
    | st.just({})
)
"""Values of every type that a payload may hold, at the limits of common fields."""


@st.composite
def corrupted(draw: st.DrawFn, payload: Payload) -> Payload:
    """Generate copies of `payload` with one to three values changed, removed or added."""
    root: dict[str, Value] = mutable_copy(payload)
    for _ in range(draw(st.integers(1, 3))):
        container, key = draw(st.sampled_from(list(payload_items(root))))
        action = draw(st.sampled_from(["change", "remove", "add", "flip"]))
        if action == "remove":
            del container[key]
        elif action == "add" and isinstance(container, dict):
            container["unknown"] = draw(hostile_values)
        elif action == "flip" and isinstance(container[key], int):
            container[key] ^= 1 << draw(st.integers(0, 40))
        else:
            container[key] = draw(hostile_values)
        if not root:
            break
    return root
