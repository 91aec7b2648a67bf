# SPDX-License-Identifier: Apache-2.0
"""MSI-X (PCI Local Bus 3.0, 6.8.2): the vector table, the pending bits and the capability.

A `MsixTable` has two `BusDevice`s to be put into a BAR, `table` (16 bytes a vector) and `pba`
(one pending bit a vector, read only), and a capability that `add_to` appends to a function:

    msix = MsixTable(vectors=3, sink=sink)
    layout.map(0x8000, msix.table_bytes, msix.table)
    layout.map(0xC000, msix.pba_bytes, msix.pba)
    msix.add_to(function, bar=4, table_offset=0x8000, pba_offset=0xC000)
    msix.signal(vector)

A vector is *live* while MSI-X is enabled and neither the function nor the vector is masked. `route`
passes the message of a live vector to the sink before it is first triggered, and again whenever it
changes; programming a message while it is masked, as drivers do, costs one `route`. A signal on a
vector that is not live sets its pending bit, and is sent when the vector becomes live; while MSI-X
is disabled signals are dropped, since the function then uses INTx.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from devices.listeners import Listeners
from devices.pci.config_space import PciFunction
from devices.ports import MsiSink, Tracer
from devices.registers import Access, Register, RegisterTable
from devices.state import Fields, Payload, Restore

CAPABILITY_ID = 0x11
"""MSI-X in a capability list."""
ENTRY_BYTES = 16
"""Size of a vector's entry in the table."""
MAX_VECTORS = 2048
"""Most vectors of a function."""

CONTROL_FUNCTION_MASK = 1 << 14
CONTROL_ENABLE = 1 << 15
"""Bits of the message control register (6.8.2.3)."""
VECTOR_MASKED = 1 << 0
"""Bit of a vector control word (6.8.2.9)."""


class VectorState(NamedTuple):
    """A vector: its message, `address` and `data`, and whether it is `masked` and `pending`."""

    address: int
    data: int
    masked: bool
    pending: bool


class MsixTable:
    """MSI-X state of the function `name` with `vectors` vectors (1 to 2048).

    `table` and `pba` are the parts to be put into a BAR. `control_written` is called when MSI-X may
    have been enabled or disabled.
    """

    def __init__(
        self, vectors: int, sink: MsiSink, name: str = "msix", tracer: Tracer | None = None
    ) -> None:
        if not 1 <= vectors <= MAX_VECTORS:
            raise ValueError(f"a function cannot have {vectors} MSI-X vectors")
        self.vectors = vectors
        self._sink = sink
        self._name = name
        self._tracer = tracer
        self.control_written: Listeners[[]] = Listeners()
        self._pending = 0
        self.enabled = False
        """True while MSI-X is enabled, so that the function must not use INTx."""
        # Whether each vector is enabled and not masked; every interrupt asks for it.
        self._live = [False] * vectors
        # The message last given to the sink for each vector; None before the first.
        self._routed: list[tuple[int, int] | None] = [None] * vectors
        self.table = RegisterTable(
            f"{name}.msix_table",
            [row for vector in range(vectors) for row in self._entry(vector)],
            tracer=tracer,
        )
        self.pba = RegisterTable(
            f"{name}.msix_pba",
            [
                Register(f"pending{word}", 8 * word, 8, Access.RO, partial(self._read_pba, word))
                for word in range(self.pba_bytes // 8)
            ],
            tracer=tracer,
        )
        self._table_location = 0
        self._pba_location = 0
        self._capability = RegisterTable(
            f"{name}.msix_capability",
            [
                Register(
                    "message_control",
                    0,
                    2,
                    reset=vectors - 1,
                    writable=CONTROL_ENABLE | CONTROL_FUNCTION_MASK,
                    write=self._control_written,
                ),
                Register("table", 2, 4, Access.RO, read=lambda: self._table_location),
                Register("pba", 6, 4, Access.RO, read=lambda: self._pba_location),
            ],
            tracer=tracer,
        )

    def _entry(self, vector: int) -> list[Register]:
        base = ENTRY_BYTES * vector
        changed = partial(self._entry_written, vector)
        return [
            # Messages are DWORDs: the two low address bits are 0 (6.8.2.4).
            Register(f"address_low{vector}", base, 4, writable=~3, write=changed),
            Register(f"address_high{vector}", base + 4, 4, write=changed),
            Register(f"data{vector}", base + 8, 4, write=changed),
            Register(
                f"control{vector}",
                base + 12,
                4,
                reset=VECTOR_MASKED,
                writable=VECTOR_MASKED,
                write=changed,
            ),
        ]

    @property
    def table_bytes(self) -> int:
        """The size of the vector table."""
        return ENTRY_BYTES * self.vectors

    @property
    def pba_bytes(self) -> int:
        """Size of the pending bit array: whole QWORDs (6.8.2.5)."""
        return (self.vectors + 63) // 64 * 8

    def add_to(self, function: PciFunction, *, bar: int, table_offset: int, pba_offset: int) -> int:
        """Append the capability for structures in BAR `bar`; offsets are multiples of 8.

        Returns the capability's offset in configuration space.
        """
        self._table_location = table_offset | bar
        self._pba_location = pba_offset | bar
        return function.add_capability(
            CAPABILITY_ID,
            bytes(self._capability.size_bytes),
            read=self._capability.read,
            write=self._capability.write,
            peek=self._capability.peek_bytes,
        )

    # --- Saved state ------------------------------------------------------------------------
    def save_state(self) -> Payload:
        """Return table, pending bits and control; routes follow from the table."""
        return {
            "capability": self._capability.save_state(),
            "table": self.table.save_state(),
            "pending": self._pending.to_bytes(self.pba_bytes, "little"),
        }

    def check_state(self, fields: Fields) -> Restore:
        """Check the state; return the function that applies it, routes vectors and notifies."""
        restore_capability = self._capability.check_state(fields.part("capability"))
        restore_table = self.table.check_state(fields.part("table"))
        pending = int.from_bytes(fields.data("pending", length=self.pba_bytes), "little")
        if pending >> self.vectors:
            raise fields.error("pending", f"is set for more than {self.vectors} vectors")

        def restore() -> None:
            restore_capability()
            restore_table()
            self._pending = pending
            self._routed = [None] * self.vectors
            self._control_written(self._capability["message_control"])

        return restore

    # --- Device side ------------------------------------------------------------------------
    def signal(self, vector: int) -> None:
        """Send the message of `vector` now, or when it is unmasked.

        Raises IndexError for a vector beyond the table.
        """
        if not 0 <= vector < self.vectors:
            raise IndexError(f"MSI-X vector {vector} of {self.vectors}")
        if self._live[vector]:
            self._sink.trigger(vector)
        elif self.enabled:
            self._pending |= 1 << vector

    def drop_pending(self) -> None:
        """Clear all pending bits, because the function was reset."""
        self._pending = 0

    def is_live(self, vector: int) -> bool:
        """Return whether MSI-X is enabled and neither the function nor `vector` is masked."""
        return self._live[vector]

    # --- For people ---------------------------------------------------------------------------
    @property
    def capability(self) -> RegisterTable:
        """The registers of the capability's body."""
        return self._capability

    def entries(self) -> list[VectorState]:
        """Return every vector as it is at the moment."""
        return [
            VectorState(
                self.table[f"address_high{vector}"] << 32 | self.table[f"address_low{vector}"],
                self.table[f"data{vector}"],
                bool(self.table[f"control{vector}"] & VECTOR_MASKED),
                bool(self._pending >> vector & 1),
            )
            for vector in range(self.vectors)
        ]

    # --- Guest side -------------------------------------------------------------------------
    def _entry_written(self, vector: int, _value: int) -> None:
        self._refresh(vector)

    def _control_written(self, _value: int) -> None:
        self.enabled = bool(self._capability["message_control"] & CONTROL_ENABLE)
        for vector in range(self.vectors):
            self._refresh(vector)
        self.control_written()

    def _refresh(self, vector: int) -> None:
        """Update the sink's route of a vector that may have become live or changed."""
        table, control = self.table, self._capability["message_control"]
        self._live[vector] = (
            control & (CONTROL_ENABLE | CONTROL_FUNCTION_MASK) == CONTROL_ENABLE
            and not table[f"control{vector}"] & VECTOR_MASKED
        )
        if not self._live[vector]:
            return
        address = table[f"address_high{vector}"] << 32 | table[f"address_low{vector}"]
        message = (address, table[f"data{vector}"])
        if self._routed[vector] != message:
            self._routed[vector] = message
            if self._tracer is not None and self._tracer.watched:
                self._tracer.event(
                    "msix_route", device=self._name, vector=vector, address=address, data=message[1]
                )
            self._sink.route(vector, *message)
        if self._pending >> vector & 1:
            self._pending &= ~(1 << vector)
            self._sink.trigger(vector)

    def _read_pba(self, word: int) -> int:
        return self._pending >> (64 * word) & (1 << 64) - 1
