# SPDX-License-Identifier: Apache-2.0
"""`pyvmm learn`: list the chapters, run their runnable parts, hand out and check exercises.

A runnable part and a check that need KVM run in the lab if this host's KVM is unfit; the scope runs
on the host.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import click

from pyvmm.blocking.process_limit import process_limit_reported
from pyvmm.cli.errors import CommandError
from pyvmm.cli.options import boot_option, given_parameters
from pyvmm.files.errors import OutputNotWritten
from pyvmm.lab.choose import KvmMode, KvmProvider, choose_kvm
from pyvmm.learn.chapter import Chapter, load_chapters
from pyvmm.learn.completed import completed_chapters, remember_completed
from pyvmm.learn.file_check import check_file, check_readable
from pyvmm.sockets.lab_paths import in_lab
from pyvmm.standard_streams.text import print_line, print_message

GUEST_RAM_MIB = 512
"""Most RAM of the guests of runnable parts."""
WRAP_COLUMNS = 80
"""Width of the explanations of a check."""
_ACTIONS = ("exercise", "solution", "check")
"""Parameters that do something else than run the runnable part."""
_RUN_OPTIONS = ("record", "opens_scope")
"""Parameters of the runnable part."""


@click.command()
@click.argument("number", metavar="[N]", type=int, required=False)
@click.option(
    "--exercise",
    is_flag=False,
    flag_value=".",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="[DIRECTORY]",
    help="Write the exercise of chapter N into DIRECTORY, by default this one.",
)
@click.option(
    "--check",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Check the solved exercise of chapter N in FILE.",
)
@click.option("--solution", is_flag=True, help="Print a solution of the exercise of chapter N.")
@click.option(
    "--record",
    type=click.Path(path_type=Path),
    metavar="FILE",
    show_default="chapter_NN.rec",
    help="Record the events of the runnable part in FILE.",
)
@click.option(
    "--scope/--no-scope",
    "opens_scope",
    default=None,
    help="Show the recording in the scope afterwards; by default on a terminal.",
)
@boot_option("--kvm")
def learn(
    number: int | None,
    exercise: Path | None,
    check: Path | None,
    solution: bool,
    record: Path | None,
    opens_scope: bool | None,
    kvm: KvmMode,
) -> int:
    """Learn virtio in twelve chapters, each with a guest to watch and an exercise to solve.

    Without N, list the chapters. With N, run the chapter's runnable part, record its events, and
    show the recording in the scope until Ctrl-C. The text of the chapters is in the documentation,
    in docs/learn.

    \b
    Work through chapter 4:
      pyvmm learn 4
      pyvmm learn 4 --exercise
      pyvmm learn 4 --check chapter_04.py

    The exit status is 0 on success, 1 when the exercise is not solved, 2 when FILE cannot be read
    or written, and 125 when the lab failed.
    """
    chapters = load_chapters()
    _check_options(number)
    if number is None:
        _print_chapters(chapters)
        return 0
    if number not in chapters:
        raise CommandError(f"there is no chapter {number}", f"give one of 1 to {max(chapters)}")
    chapter = chapters[number]
    if exercise is not None:
        return _write_exercise(chapter, exercise)
    if solution:
        print_line(chapter.read("solution.py").rstrip("\n"))
        return 0
    if check is not None:
        return _check(chapter, check, kvm)
    recording = record or Path(f"chapter_{number:02d}.rec")
    status = _run(chapter, recording, kvm)
    if status or in_lab():
        return status
    print_line(f"\nThe events are in {recording}. Next: pyvmm learn {number} --exercise")
    if sys.stdout.isatty() if opens_scope is None else opens_scope:
        return _show(recording, chapter.view)
    return 0


def _check_options(number: int | None) -> None:
    """Raise `CommandError` for options that need the number of a chapter, or exclude each other."""
    actions = list(given_parameters(_ACTIONS))
    given = [*actions, *given_parameters(_RUN_OPTIONS)]
    if given and number is None:
        file = " FILE" if given[0] in ("--check", "--record") else ""
        raise CommandError(
            f"{given[0]} needs the number of a chapter",
            f"for example: pyvmm learn 1 {given[0]}{file}",
        )
    if actions and len(given) > 1:
        raise CommandError(f"{given[0]} and {given[1]} cannot be combined", "give one of them")


def _print_chapters(chapters: dict[int, Chapter]) -> None:
    completed = completed_chapters()
    for number, chapter in chapters.items():
        end = "  done" if number in completed else ""
        print_line(f"{number:2}  {chapter.title:<42} {chapter.minutes} minutes{end}")
        print_line(f"    {chapter.goal}")
    print_line("")
    print_line("Start one with: pyvmm learn N")


def _write_exercise(chapter: Chapter, directory: Path) -> int:
    """Write the exercise; a file that is there stays, as it may hold the student's work."""
    path, text = directory / chapter.exercise_name, chapter.read("exercise.py")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("x") as file:
                file.write(text)
        except FileExistsError:
            if path.read_text(errors="replace") != text:
                raise CommandError(
                    f"{path} exists and differs from the exercise",
                    "name another directory with --exercise DIRECTORY, or move the file away",
                ) from None
    except OSError as error:
        raise OutputNotWritten(f"{path} cannot be written: {error.strerror}") from error
    print_line(f"{path}: mend it, then run: pyvmm learn {chapter.number} --check {path}")
    return 0


def _check(chapter: Chapter, file: Path, kvm: KvmMode) -> int:
    """Check `file`; remember on the host that it has passed."""
    check_readable(file)  # before a lab is started for it
    if chapter.check_needs_kvm and choose_kvm(kvm) is KvmProvider.LAB:
        # Late: saves 23 ms (the lab) where KVM is fit.
        from pyvmm.cli.lab import run_guest_in_lab

        command = [sys.executable, "-m", "pyvmm", "learn", str(chapter.number), "--check"]
        status = run_guest_in_lab([*command, str(file)], 0, files=[file])
    else:
        status = _check_here(chapter, file)
    if status == 0 and not in_lab():
        try:
            remember_completed(chapter.number)
        except (OSError, RuntimeError) as error:
            print_message(f"cannot remember that chapter {chapter.number} is done: {error}")
    return status


def _check_here(chapter: Chapter, file: Path) -> int:
    outcome = check_file(chapter, file)
    if outcome.passed:
        print_line(f"chapter {chapter.number}: {file} is correct")
        return 0
    print_line(f"chapter {chapter.number}: {file} is not correct yet")
    print_line(textwrap.fill(outcome.message, WRAP_COLUMNS, break_on_hyphens=False))
    if outcome.output:
        print_line(f"\nIt has printed:\n{outcome.output.rstrip()}")
    return 1


def _run(chapter: Chapter, recording: Path, kvm: KvmMode) -> int:
    """Run the runnable part of `chapter`."""
    print_line(f"{chapter.number}. {chapter.title}\n\n{chapter.text}\n")
    sys.stdout.flush()
    argv = [sys.executable, "-m", "pyvmm.learn.run_process", str(chapter.number), str(recording)]
    files = [recording]
    if chapter.run_needs == "guest":
        image = _guest_image()
        argv.append(str(image))
        files.append(image)
    if chapter.run_needs != "nothing" and choose_kvm(kvm) is KvmProvider.LAB:
        # Late: saves 23 ms (the lab) where KVM is fit.
        from pyvmm.cli.lab import run_guest_in_lab

        return run_guest_in_lab(argv, GUEST_RAM_MIB, files=files)
    with process_limit_reported():
        return subprocess.run(argv).returncode


def _show(recording: Path, view: str) -> int:
    """Serve the scope of `recording` at `view`, until Ctrl-C; return the exit status."""
    sys.stdout.flush()
    # Late: saves 60 ms (tornado) without the scope.
    from pyvmm.cli.scope_server import has_display, serve
    from pyvmm.scope.recorded_guest import RecordedGuest

    return serve(RecordedGuest(recording), 0, has_display(), view)


def _guest_image() -> Path:
    """Return the default guest image, which is built the first time. Raises `UserError`."""
    # Late: saves 20 ms (the image builder) for chapters without a guest.
    from guest_images.build import build_image
    from pyvmm.progress.reporter import show_progress

    with show_progress() as progress:
        return build_image(progress=progress)
