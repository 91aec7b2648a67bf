# SPDX-License-Identifier: Apache-2.0
"""One entry of a function's capability list (PCI Local Bus 3.0, 6.7).

A capability is an id, a pointer to the next one and a body of its own format. The body is either
plain bytes, of which the guest can change some bits, or served by its owner's handlers.
"""

from __future__ import annotations

from collections.abc import Callable

from devices.registers import Access, Register, RegisterTable


class Capability:
    """One capability: its body as a `BusDevice`, its two-byte `header` as a register table.

    The guest can change the bits of `body` that are set in `writable_mask` (shorter means zeros);
    `read` and `write`, if given, serve the body instead, and `peek` returns it without the side
    effects. `offset` is its place in the function's configuration space, `cap_id` its id.
    """

    def __init__(
        self,
        offset: int,
        cap_id: int,
        body: bytes,
        writable_mask: bytes,
        read: Callable[[int, int], int] | None,
        write: Callable[[int, int, int], None] | None,
        peek: Callable[[], bytes] | None,
    ) -> None:
        self.offset = offset
        self.cap_id = cap_id
        self.header = RegisterTable(
            f"capability {cap_id:#x}",
            [
                Register("id", 0, 1, Access.RO, reset=cap_id),
                Register("next", 1, 1, Access.RO),
            ],
        )
        self._body = bytearray(body)
        self._mask = writable_mask.ljust(len(body), b"\0")
        self._read = read
        self._write = write
        self._peek = peek

    def link(self, offset: int) -> None:
        """Link the capability at `offset` as the next one in the list."""
        self.header["next"] = offset

    def read(self, offset: int, size: int) -> int:
        """Read `size` bytes of the body."""
        if self._read is not None:
            return self._read(offset, size)
        return int.from_bytes(self._body[offset : offset + size], "little")

    def peek(self) -> bytes:
        """Return the body, without the side effects of a read."""
        return bytes(self._body) if self._peek is None else self._peek()

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the guest-writable bits of `size` bytes of the body."""
        if self._write is not None:
            self._write(offset, size, value)
            return
        for i, byte in enumerate(value.to_bytes(size, "little"), offset):
            self._body[i] = self._body[i] & ~self._mask[i] & 0xFF | byte & self._mask[i]
