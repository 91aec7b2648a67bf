# SPDX-License-Identifier: Apache-2.0
"""`pyvmm learn` lists chapters, hands out exercises, checks them and remembers those that pass."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pyvmm.cli.main import main
from pyvmm.learn.chapter import load_chapters

CHAPTER = load_chapters()[3]


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Remember chapters in a directory of the test; return the file."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "state" / "pyvmm" / "learn.json"


def learn(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["learn", *map(str, arguments)])


def test_the_list_has_every_chapter_with_its_goal() -> None:
    output = learn().output
    for chapter in load_chapters().values():
        assert f"{chapter.number:2}  {chapter.title}" in output
        assert chapter.goal in output
    assert "done" not in output


def test_a_solved_exercise_is_remembered_and_an_unsolved_one_is_not(own_state: Path) -> None:
    assert learn(3, "--exercise").exit_code == 0
    unsolved = learn(3, "--check", "chapter_03.py")
    assert unsolved.exit_code == 1
    assert "is not correct yet\n" in unsolved.output
    assert max(map(len, unsolved.output.splitlines())) <= 80
    assert not own_state.exists()
    Path("chapter_03.py").write_text(learn(3, "--solution").output)
    solved = learn(3, "--check", "chapter_03.py")
    assert (solved.exit_code, solved.output) == (0, "chapter 3: chapter_03.py is correct\n")
    [line] = [line for line in learn().output.splitlines() if "done" in line]
    assert line.startswith(f" 3  {CHAPTER.title}")


@pytest.mark.parametrize("text", ["", "[]", '{"completed": 3}', "\xff"])
def test_a_damaged_memory_of_chapters_is_none(own_state: Path, text: str) -> None:
    own_state.parent.mkdir(parents=True)
    own_state.write_bytes(text.encode("latin-1"))
    assert "done" not in learn().output


def test_a_memory_that_cannot_be_written_does_not_fail_a_check(own_state: Path) -> None:
    own_state.parent.parent.write_text("a file in the way of the directory")
    Path("mine.py").write_text(CHAPTER.read("solution.py"))
    result = learn(3, "--check", "mine.py")
    assert result.exit_code == 0
    assert "cannot remember that chapter 3 is done" in result.output


def test_the_exercise_does_not_replace_a_students_work(tmp_path: Path) -> None:
    first = learn(3, "--exercise", "work")
    path = tmp_path / "work" / "chapter_03.py"
    assert path.read_text() == CHAPTER.read("exercise.py")
    assert "pyvmm learn 3 --check work/chapter_03.py" in first.output
    assert learn(3, "--exercise", "work").exit_code == 0
    path.write_text("my work")
    refused = learn(3, "--exercise", "work")
    assert refused.exit_code == 2
    assert "work/chapter_03.py exists and differs from the exercise" in refused.output
    assert path.read_text() == "my work"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((99,), "there is no chapter 99; give one of 1 to"),
        ((0,), "there is no chapter 0"),
        (("--check", "x.py"), "--check needs the number of a chapter; for example: pyvmm learn 1"),
        (("--solution",), "--solution needs the number of a chapter"),
        (("--record", "x.rec"), "--record needs the number of a chapter"),
        ((3, "--solution", "--check", "x.py"), "--check and --solution cannot be combined"),
        ((3, "--exercise", "x", "--record", "x"), "--exercise and --record cannot be combined"),
        ((3, "--check", "x.py"), "x.py does not exist; give the file that 'pyvmm learn N"),
        ((1, "--check", "x.py", "--kvm", "lab"), "x.py does not exist"),
        ((3, "--exercise", "/proc/x"), "cannot be written"),
    ],
)
def test_a_mistake_is_one_line_with_status_2(arguments: tuple[object, ...], message: str) -> None:
    result = learn(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert result.output.count("\n") == 1


def test_output_of_the_file_cannot_act_on_the_terminal() -> None:
    Path("mine.py").write_text("print('\\x1b[2J')\n1 / 0\n")
    output = learn(3, "--check", "mine.py").output
    assert output.endswith("\n\nIt has printed:\n\\x1b[2J\n")
    assert "\x1b" not in output


def test_the_scope_shows_the_recording_of_the_runnable_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served: list[tuple[object, ...]] = []

    def serve(*arguments: object) -> int:
        served.append(arguments)
        return 0

    monkeypatch.setattr("pyvmm.cli.scope_server.serve", serve)
    monkeypatch.setattr("pyvmm.scope.recorded_guest.RecordedGuest", str)
    monkeypatch.setattr("pyvmm.cli.learn._run", lambda *arguments: 0)
    assert "The events are in chapter_03.rec. Next: pyvmm learn 3 --exercise" in learn(3).output
    assert served == [], "standard output is no terminal"
    learn(3, "--scope", "--record", "own.rec")
    assert [(call[0], call[-1]) for call in served] == [("own.rec", CHAPTER.view)]
