# SPDX-License-Identifier: Apache-2.0
"""The surroundings of a runnable part, and a way to record the events of a test board.

def run(stage: Stage) -> None:
    with record_events(stage.recording) as events:
        tracer = RecordingTracer(events)
        ...
    stage.show_events(("descriptor", "chain", "used"))
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pyvmm.standard_streams.text import print_line
from pyvmm.trace.logging import fields_text
from pyvmm.trace.recording import Recording
from pyvmm.trace.recording_file import RecordingFile
from pyvmm.trace.stream import TraceEvent
from pyvmm_native.events import EventBuffer

EVENTS_HALF_BYTES = 8 << 20
"""Bytes of events that a test board may emit."""


class Stage(NamedTuple):
    """The `recording` to write, and the guest `image` to boot, if the chapter needs one."""

    recording: Path
    image: Path | None

    def say(self, text: str = "") -> None:
        """Print a line for the student, at once."""
        print_line(text)

    @property
    def guest_image(self) -> Path:
        """The image of a chapter that needs one."""
        assert self.image is not None
        return self.image

    def show_events(
        self,
        kinds: Collection[str] = (),
        *,
        device: str = "",
        queue: str = "",
        where: Callable[[TraceEvent], bool] = lambda event: True,
        at_most: int = 20,
        without: Collection[str] = ("device", "queue", "table"),
    ) -> None:
        """Print the first `at_most` recorded events of `kinds`, and say how many more there are.

        Empty arguments stand for all; `where` is a further condition. The fields `without` are left
        out.
        """
        more = 0
        with Recording(self.recording) as recording:
            for event in recording.events():
                if (
                    (kinds and event.kind not in kinds)
                    or (device and event.device != device)
                    or (queue and event.queue != queue)
                    or not where(event)
                ):
                    continue
                if at_most <= 0:
                    more += 1
                    continue
                at_most -= 1
                fields = {key: value for key, value in event.fields.items() if key not in without}
                self.say(f"  {event.kind} {fields_text(fields)}")
        if more:
            self.say(f"  ... and {more} more")


@contextmanager
def record_events(path: Path) -> Iterator[EventBuffer]:
    """Write the events that the block emits into the buffer to a recording at `path`.

    Raises `RecordingNotWritten`.
    """
    file = RecordingFile(path)
    file.commit()
    events = EventBuffer()
    events.start(EVENTS_HALF_BYTES)
    try:
        yield events
    finally:
        batch = events.stop()
        if batch is not None:
            file.write(batch)
        file.close()
