# SPDX-License-Identifier: Apache-2.0
"""The files that each chapter's check has to judge, with a part of what it has to say.

A file of `wrong/` is a wrong solution: its text names the mistake, and its diff makes it
in the solution. `EXPLANATIONS` has, for the unsolved exercise of each chapter and each wrong
solution, words of the explanation that leads a student on.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from pyvmm.learn.chapter import Chapter, load_chapters

WRONG = Path(__file__).parent / "wrong"
SIDES = (" -", " +")
"""First characters of the lines of a hunk before and after the change."""

EXPLANATIONS = {
    "chapter_01_exercise": "Is the answer in the data area of the exit",
    "chapter_01_every_port_can_send": "Without a device a read returns all ones",
    "chapter_01_skips_the_instruction": "leave the registers of the vCPU to KVM",
    "chapter_02_exercise": "the next register is its upper half",
    "chapter_02_keeps_the_upper_half": "whatever firmware has left in them",
    "chapter_02_all_bars_have_64_bits": "otherwise the next register is the next BAR",
    "chapter_03_exercise": "Which register selects the half that driver_feature shows",
    "chapter_03_does_not_read_the_status": "ensure that FEATURES_OK is still set",
    "chapter_03_accepts_every_feature": "accepts those features that both have",
    "chapter_04_exercise": "each descriptor of its chain is free again",
    "chapter_04_frees_at_once": "only when the device has returned its buffer",
    "chapter_04_frees_neighbours": "need not be neighbours",
    "chapter_05_exercise": "after the driver had found the ring empty",
    "chapter_05_never_suppresses": "Suppress interrupts while the used ring is read",
    "chapter_05_looks_twice_only": "What has to be true at the moment at which it returns",
    "chapter_06_exercise": "it sleeps although its buffer is there",
    "chapter_06_any_later_index": "the driver has passed that index before",
    "chapter_06_compares_without_wrap": "differences modulo 2^16 do",
    "chapter_07_exercise": "MUST NOT set both flags in one descriptor",
    "chapter_07_direct_chain": "each buffer takes one of them",
    "chapter_07_no_next_in_the_table": "each descriptor but the last has NEXT",
    "chapter_08_exercise": "divided by 4096, whatever the page size of the guest",
    "chapter_08_one_number_a_page": "the array needs all of them",
    "chapter_08_actual_in_pages_of_the_guest": "Both fields count 4 KiB pages",
    "chapter_09_exercise": "counted from the least significant",
    "chapter_09_bitmap_begins_at_the_first_page": "start_pfn 0x64 is not a multiple of 64",
    "chapter_09_big_endian_words": "counted from the least significant",
    "chapter_10_exercise": "A message belongs to the request whose id it has",
    "chapter_10_late_message_is_an_error": "A late message is no fault of the driver's",
    "chapter_10_late_message_completes_the_request": "flag DONE ends it",
    "chapter_11_exercise": "a page need not be copied",
    "chapter_11_discards_each_hint_at_once": "before the device saw the hint",
    "chapter_11_discards_what_the_log_does_not_name": "after the host had read the dirty log",
    "chapter_11_copies_everything": "hints are there to leave them out",
    "chapter_12_exercise": "right after the page was read",
    "chapter_12_clears_between_read_and_send": "right after the page was read",
    "chapter_12_never_clears": "is sent in every round",
    "chapter_12_reads_the_log_before_the_pause": "complete only when the guest is paused",
}


class Attempt(NamedTuple):
    """A file to check with `chapter`; `explanation` is part of the message, "" if it is correct."""

    chapter: Chapter
    name: str
    text: str
    explanation: str

    def write(self, directory: Path) -> Path:
        """Write the file as a student would have it; return its path."""
        path = directory / self.chapter.exercise_name
        path.write_text(self.text)
        return path


def attempts(chapter: Chapter) -> list[Attempt]:
    """Return the solution, the unsolved exercise and the wrong solutions of `chapter`."""
    package = chapter.package.rpartition(".")[2]
    solution = chapter.read("solution.py")
    texts = {
        f"{package}_solution": solution,
        f"{package}_exercise": chapter.read("exercise.py"),
        **{
            path.stem: apply_diff(solution, path.read_text())
            for path in sorted(WRONG.glob(f"{package}_*.diff"))
        },
    }
    return [
        Attempt(chapter, name, text, EXPLANATIONS.get(name, "")) for name, text in texts.items()
    ]


def apply_diff(text: str, diff: str) -> str:
    """Return `text` changed by the hunks of a unified `diff`, each of which fits in one place."""
    for hunk in re.split(r"^@@.*\n", diff, flags=re.MULTILINE)[1:]:
        lines = hunk.splitlines(keepends=True)
        before, after = ("".join(line[1:] for line in lines if line[0] in side) for side in SIDES)
        assert text.count(before) == 1, f"{text.count(before)} places for {before!r}"
        text = text.replace(before, after)
    return text


ATTEMPTS = [attempt for chapter in load_chapters().values() for attempt in attempts(chapter)]
