# SPDX-License-Identifier: Apache-2.0
"""The device's side of a split virtqueue (VIRTIO 1.2, 2.7)."""

from collections.abc import Iterable
from typing import final

from typing_extensions import Buffer

from pyvmm_native.memory import GuestMemory

class RingError(Exception):
    """A malformed ring or descriptor chain: the driver's fault, after which the device needs reset.

    The message names what is wrong. The queue is left as it was before the call.
    """

@final
class Chain:
    """One buffer the driver made available, already checked (VIRTIO 1.2, 2.7.5).

    Made only by `SplitQueue.pop` and `held`. Every element of it is in guest RAM, device-readable elements
    come before device-writable ones, and it is at most Queue Size elements and 2**32 bytes long.
    """

    @property
    def head(self) -> int:
        """Index of the first descriptor, by which the buffer is returned (2.7.8)."""

    @property
    def readable(self) -> bytes:
        """The device-readable part, copied out of guest memory once.

        Empty when `readable_bytes` is more than the limit given to `pop`.
        """

    @property
    def readable_bytes(self) -> int:
        """Size in bytes of the device-readable part as the driver described it."""

    @property
    def writable_bytes(self) -> int:
        """Size in bytes of the device-writable part."""

    @property
    def writable_segments(self) -> tuple[tuple[int, int], ...]:
        """(gpa, length in bytes) of each device-writable element, in order.

        For devices to which a buffer is not room to write but the message itself. Every one is in
        guest RAM; elements of zero bytes are left out.
        """

    def write(self, data: Buffer) -> int:
        """Copy `data` to the start of the device-writable part; returns its size in bytes.

        ValueError when it is longer than `writable_bytes`. A second call writes the same place
        again.
        """

@final
class SplitQueue:
    """Device side of one split virtqueue of `size` entries.

    The areas are given by guest-physical address. RingError when `size` is not a power of two
    from 1 to 32768, when an area is not aligned (16, 2 and 4 bytes) or not inside one region of
    `memory` (VIRTIO 1.2, 2.7). `event_idx` and `indirect` say whether VIRTIO_F_EVENT_IDX and
    VIRTIO_F_INDIRECT_DESC were negotiated. Indices start at 0; nothing is written to the ring.

    One thread at a time. The driver may do anything to the ring meanwhile.
    """

    def __init__(
        self,
        memory: GuestMemory,
        size: int,
        desc_gpa: int,
        avail_gpa: int,
        used_gpa: int,
        *,
        event_idx: bool = False,
        indirect: bool = False,
    ) -> None: ...
    @property
    def memory(self) -> GuestMemory: ...
    @property
    def size(self) -> int:
        """Queue Size, in entries."""

    @property
    def event_idx(self) -> bool: ...
    @property
    def indirect(self) -> bool: ...

    next_avail: int
    """Index, modulo 2**16, of the next buffer to pop. Set only to restore a saved queue."""

    next_used: int
    """Index, modulo 2**16, of the next used element, for which the ring is not consulted.

    Set only to restore a saved queue. As it is not known then whether the driver was told of the
    last used buffers, the next `should_interrupt` assumes it was not.
    """

    @property
    def pending(self) -> int:
        """Buffers available and not popped yet; RingError when more than the queue can hold."""

    def pop(self, max_readable_bytes: int) -> Chain | None:
        """Take the next available buffer, or None when there is none (2.7.6).

        At most Queue Size elements are looked at. When the device-readable part is larger than
        `max_readable_bytes` the chain comes back with `readable` empty, to be pushed with length
        0; it is never dropped. An element of zero bytes is legal: no clause of 2.7 forbids it.
        Its address is not looked at. RingError for a malformed ring or chain: head or next index
        outside the table, a loop or more than Queue Size elements, an address outside RAM, a
        device-readable element after a writable one (2.7.4.2), more than 2**32 bytes (2.7.5.2),
        and indirect tables that were not negotiated, are nested, carry NEXT, or are empty or of
        odd size (2.7.5.3.1).
        """

    def held(self, head: int, writable_segments: Iterable[tuple[int, int]]) -> Chain:
        """A buffer that was popped, but not pushed, when this queue was saved.

        As then, it is what the driver once described, whatever its descriptors say by now; of the
        device-readable part nothing is left. RingError, as for `pop`, if it cannot have been.
        """

    def push(self, chain: Chain | int, written: int = 0) -> None:
        """Return a buffer, given by its chain or head index, as used (2.7.8).

        `written` is the number of bytes the device wrote from the start of the writable part.
        ValueError when it is more than the chain has room for or the index is outside the table,
        OverflowError when it does not fit 32 bits: those are mistakes of the device model.
        """

    def should_interrupt(self) -> bool:
        """Whether the driver wants a used buffer notification for what was pushed since last asked.

        False when nothing was pushed. Otherwise by VIRTQ_AVAIL_F_NO_INTERRUPT, or with EVENT_IDX
        by whether `used_event` names one of the new elements (2.7.7.2), however many they are.
        """

    def enable_notifications(self) -> bool:
        """Ask the driver for available buffer notifications (2.7.10).

        Returns whether something became available meanwhile, for which no notification may come:
        the caller then goes on popping. Does not raise; a broken index is reported by `pop`.
        """

    def disable_notifications(self) -> None:
        """Tell the driver that notifications are not needed; it may send some all the same."""
