# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies for tests of device models; needs `pip install pyvmm[hypothesis]`.

Nothing else in `devices.testing` imports Hypothesis.
"""

from __future__ import annotations

from hypothesis import strategies as st

from devices.state import Payload, Value
from devices.testing.states import mutable_copy, payload_items

buffer_elements: st.SearchStrategy[tuple[list[bytes], list[int]]] = st.tuples(
    st.lists(st.binary(max_size=300), max_size=6), st.lists(st.integers(0, 300), max_size=6)
)
"""(readable, writable) for `DriverQueue.add`: up to 6 elements of 0 to 300 bytes each way."""

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
