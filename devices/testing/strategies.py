# SPDX-License-Identifier: Apache-2.0
"""Moving a part's state into another one, and spoiling it on the way, for tests.

move(uart, new_uart)                      # through the bytes of a file
assert_hostile_states_are_refused(...)    # anything else is a StateError and changes nothing
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from devices.state import Fields, Payload, StateError, Stateful, Value, decode, encode


def move(source: Stateful, target: Stateful) -> None:
    """Restore `target` to the state of `source`, which stays as it was."""
    data = encode(source.save_state())
    target.restore_state(Fields(source.STATE_KIND, decode(data)))
    assert encode(source.save_state()) == data, "saving changed something"


ODD_VALUES: st.SearchStrategy[Value] = (
    st.integers(-(1 << 63), (1 << 64) - 1)
    | st.sampled_from([0, 1, 2, 255, 256, 65535, 65536, (1 << 32) - 1, 1 << 32])
    | st.booleans()
    | st.binary(max_size=40)
    | st.sampled_from(["", "standard", "bitmap", "x"])
    | st.lists(st.integers(0, 300), max_size=4)
    | st.just({})
)


@st.composite
def spoiled(draw: st.DrawFn, payload: Payload) -> Payload:
    """`payload` with one to three of its values, at any depth, changed, removed or added."""
    root: dict[str, Value] = copy_of(payload)
    for _ in range(draw(st.integers(1, 3))):
        holder, key = draw(st.sampled_from(list(places(root))))
        action = draw(st.sampled_from(["change", "remove", "add", "flip"]))
        if action == "remove":
            del holder[key]
        elif action == "add" and isinstance(holder, dict):
            holder["unheard_of"] = draw(ODD_VALUES)
        elif action == "flip" and isinstance(holder[key], int):
            holder[key] ^= 1 << draw(st.integers(0, 40))
        else:
            holder[key] = draw(ODD_VALUES)
        if not root:
            break
    return root


def restore_or_refuse(part: Stateful, payload: Payload) -> bool:
    """Whether `part` took `payload`; if not, StateError came out and nothing has changed."""
    before = encode(part.save_state())
    try:
        part.restore_state(Fields("hostile", payload))
    except StateError:
        assert encode(part.save_state()) == before
        return False
    return True


def copy_of(value: Any) -> Any:
    """A copy with dictionaries and lists that can be changed."""
    if isinstance(value, dict):
        return {name: copy_of(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [copy_of(each) for each in value]
    return value


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (holder, key) in a payload."""
    keys: Any = ()
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = range(len(value))
    for key in keys:
        yield value, key
        yield from places(value[key])
