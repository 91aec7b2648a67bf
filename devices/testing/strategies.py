# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies for tests of device models; needs `pip install pyvmm[hypothesis]`.

Nothing else in `devices.testing` imports Hypothesis.
"""

from __future__ import annotations

from hypothesis import strategies as st

from devices.state import Payload, Value
from devices.testing.states import mutable_copy, payload_items

MAX_PFN = (1 << 20) - 1
"""Largest 4 KiB page frame number of `page_frames`: the last page below 4 GiB."""


def page_frames(below: int = MAX_PFN + 1, max_size: int = 300) -> st.SearchStrategy[list[int]]:
    """Lists of different 4 KiB page frame numbers, scattered and in runs, in any order."""
    run = st.tuples(st.integers(0, below - 1), st.integers(1, 40))
    runs = st.lists(run, max_size=8).map(
        lambda each: [pfn for start, count in each for pfn in range(start, start + count)]
    )
    frames = runs.map(lambda pfns: list(dict.fromkeys(p for p in pfns if p < below))[:max_size])
    return frames.flatmap(st.permutations)


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
    """Copies of `payload` with one to three values, at any depth, changed, removed or added."""
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
