# SPDX-License-Identifier: Apache-2.0
"""The guests behind the fixtures: booted ones, and ones restored from a snapshot of a boot.

The first guest to be restored is booted, saved as soon as it answers, and ended. A restored guest
reads its pages when it touches them, so it answers in a fraction of the time of a boot. There is a
snapshot for each set of options; the source removes them in the end.

With a directory for recordings, the events of each guest are in a file there that has the name of
the test, module or session that the guest is for. The boot behind a snapshot is not recorded.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from guest_images.build import build_image, image_path
from guest_images.recipe import read_recipe
from pyvmm.errors import UserError
from pyvmm.harness.blocking_guest import Guest, check_kvm
from pyvmm.harness.errors import SnapshotFailed
from pyvmm.progress.reporter import PlainLines
from pyvmm.sockets.lab_paths import in_lab
from pyvmm.standard_streams.text import print_message

if TYPE_CHECKING:
    from pyvmm.harness.agent_config import GuestOptions

LAB_DIRECTORY = "/dev/shm"
"""Directory for snapshots in the lab, whose other directories are the host's."""
MAX_NAME = 100
"""Longest name of a recording, in characters."""


class GuestSource:
    """Starts guests of the kernel `image`, or of the guest.img that pyvmm builds if it is None.

    Their events are recorded in files in the directory `recordings`, unless it is None. Use it in a
    `with` block. Errors that a user can mend fail the test, without a traceback.
    """

    def __init__(
        self, image: Path | None, config: pytest.Config, recordings: Path | None = None
    ) -> None:
        self._image = image
        self._config = config
        self._recordings = recordings
        self._names: Counter[str] = Counter()
        self._directory: Path | None = None
        self._snapshots: dict[str, Path] = {}

    def __enter__(self) -> GuestSource:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    @contextmanager
    def booted(self, options: GuestOptions, node: str = "") -> Iterator[Guest]:
        """Boot a guest for the length of the block; `node` is the id of what it is for."""
        with _failures():
            guest = self._boot(options, self._recording(node))
        with guest:
            yield guest

    @contextmanager
    def restored(self, options: GuestOptions, node: str = "") -> Iterator[Guest]:
        """Restore a guest that has just booted, for the length of the block; as `booted`."""
        with _failures():
            guest = Guest.restore(self._snapshot(options), record=self._recording(node))
        with guest:
            yield guest

    def _recording(self, node: str) -> Path | None:
        """Return the path of a new recording for the guest of `node`, which has the name of it."""
        if self._recordings is None:
            return None
        self._recordings.mkdir(parents=True, exist_ok=True)
        worker = getattr(self._config, "workerinput", {}).get("workerid", "")  # pytest-xdist
        name = re.sub(r"[^\w.]+", "-", f"{worker} {node}").strip("-.")[:MAX_NAME] or "session"
        self._names[name] += 1
        suffix = f"-{self._names[name]}" if self._names[name] > 1 else ""
        return self._recordings / f"{name}{suffix}.rec"

    def _boot(self, options: GuestOptions, record: Path | None = None) -> Guest:
        check_kvm()  # before minutes of a build
        self._image = self._image or self._build_image()
        return Guest(self._image, record=record, **options)

    def _snapshot(self, options: GuestOptions) -> Path:
        """Return the snapshot of a guest with these options, which is taken for the first test."""
        key = repr(sorted(options.items()))
        if key not in self._snapshots:
            if self._directory is None:
                parent = LAB_DIRECTORY if in_lab() else None
                self._directory = Path(tempfile.mkdtemp(prefix="pyvmm-pytest-", dir=parent))
            path = self._directory / f"{len(self._snapshots)}.snapshot"
            with self._boot(options) as guest:
                guest.save_snapshot(path, keep_running=False)
            self._snapshots[key] = path
        return self._snapshots[key]

    def _build_image(self) -> Path:
        """Return the image from the cache, or build it, which takes minutes the first time."""
        image = image_path(read_recipe())
        if image.exists():
            return image
        if in_lab():
            error = UserError("there is no guest image")
            error.add_note("build one with: pyvmm image build")
            raise error
        capture = self._config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            print_message("there is no guest image yet; building one")
            return build_image(progress=PlainLines(sys.stderr))


@contextmanager
def _failures() -> Iterator[None]:
    """Fail the test with the message of an error that a user can mend, and its notes."""
    try:
        yield
    except (UserError, SnapshotFailed) as error:
        message = "; ".join([str(error), *getattr(error, "__notes__", [])])
        raise pytest.fail.Exception(message, pytrace=False) from None
