# SPDX-License-Identifier: Apache-2.0
"""The description of a chapter, and the list of all chapters.

A chapter is a package `pyvmm.learn.chapter_NN` with a `CHAPTER`. Nothing else lists the chapters.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import pyvmm.learn

Needs: TypeAlias = Literal["nothing", "kvm", "guest"]
"""The needs of a runnable part: nothing, KVM, or KVM and a guest.img."""
_PACKAGE = re.compile(r"chapter_(\d\d)")


@dataclass(frozen=True)
class Chapter:
    """One chapter; its text is in `docs/learn/NN-slug.md`."""

    number: int
    slug: str
    title: str
    goal: str
    """The task that the student can do afterwards, as a sentence in the imperative."""
    minutes: int
    run_needs: Needs
    check_needs_kvm: bool = False
    view: str = ""
    """The fragment of the scope's address that shows the recording, such as `queues/rng`."""

    @property
    def package(self) -> str:
        """Name of the package with the files of the chapter."""
        return f"pyvmm.learn.chapter_{self.number:02d}"

    @property
    def text(self) -> str:
        """The text that introduces the runnable part."""
        return (importlib.import_module(self.package).__doc__ or "").strip()

    @property
    def exercise_name(self) -> str:
        """Name of the file in which a student solves the exercise."""
        return f"chapter_{self.number:02d}.py"

    @property
    def page(self) -> str:
        """Path of the chapter's page in the sources."""
        return f"docs/learn/{self.number:02d}-{self.slug}.md"

    def read(self, name: str) -> str:
        """Return the text of the chapter's file `name`, such as `exercise.py`."""
        return (Path(pyvmm.learn.__path__[0]) / self.package[-10:] / name).read_text()


def load_chapters() -> dict[int, Chapter]:
    """Return all chapters by number, in order."""
    chapters = {}
    for module in sorted(pkgutil.iter_modules(pyvmm.learn.__path__)):
        if match := _PACKAGE.fullmatch(module.name):
            chapter = importlib.import_module(f"pyvmm.learn.{module.name}").CHAPTER
            assert isinstance(chapter, Chapter)
            assert chapter.number == int(match[1])
            chapters[chapter.number] = chapter
    return chapters
