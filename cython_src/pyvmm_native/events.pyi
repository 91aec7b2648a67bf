# SPDX-License-Identifier: Apache-2.0

from typing import NamedTuple, final

HALF_BYTES: int
"""Bytes of events that may wait for the reader."""

class EventError(ValueError): ...

class Batch(NamedTuple):
    first_seq: int
    base_ns: int
    event_count: int
    dropped: int
    kinds: list[tuple[int, str, tuple[tuple[str, str], ...]]]
    strings: list[tuple[int, str]]
    payload: bytes

@final
class EventBuffer:
    @property
    def watched(self) -> bool: ...
    def start(self, half_bytes: int = ...) -> int: ...
    def take(self) -> Batch | None: ...
    def stop(self) -> Batch | None: ...
    def event(self, name: str, **fields: int | str) -> None: ...

def native_kinds() -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]: ...
def decode(batch: Batch) -> list[tuple[int, int, tuple[int | str, ...]]]: ...
