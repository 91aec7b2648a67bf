# SPDX-License-Identifier: Apache-2.0
"""The command line as a whole: exit statuses, one-line errors, lazy imports."""

import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import pytest

import pyvmm
from pyvmm.cli import main as cli
from pyvmm.cli.errors import CommandError
from pyvmm.cli.lab import parse_memory
from pyvmm.version import VERSION
from tests.pyvmm.boot.elf_kernel import elf_kernel

ROOT = Path(__file__).parents[3]
NO_BRACKETS = {ord("["): None, ord("]"): None}


def run_main(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    assert isinstance(exit_info.value.code, int)
    return exit_info.value.code


def add_command(monkeypatch: pytest.MonkeyPatch, behave: object) -> None:
    """Make `pyvmm test` call `behave`, imported from a module as every subcommand is."""

    @click.command
    @click.option("--number", type=int)
    def command(number: int | None) -> object:
        assert callable(behave)
        return behave()

    monkeypatch.setattr(sys.modules[__name__], "the_command", command, raising=False)
    entry = cli.LazyCommand(__name__, "the_command", "For this test.", cli.TOOLS)
    monkeypatch.setitem(cli.COMMANDS, "test", entry)


def fail_with(error: BaseException) -> object:
    def behave() -> None:
        raise error

    return behave


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, entry in cli.COMMANDS.items():
        assert name in out
        assert entry.short_help in out


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert pyvmm.__version__ == VERSION
    assert run_main(["--version"]) == 0
    assert VERSION in capsys.readouterr().out


@pytest.mark.parametrize(("result", "status"), [(None, 0), (0, 0), (1, 1), (3, 3)])
def test_a_command_returns_its_exit_status(
    monkeypatch: pytest.MonkeyPatch, result: int | None, status: int
) -> None:
    add_command(monkeypatch, lambda: result)
    assert run_main(["test"]) == status


def test_a_user_error_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_command(monkeypatch, fail_with(CommandError("no image\nhere", "build one")))
    assert run_main(["test"]) == 2
    assert capsys.readouterr().err == "pyvmm: no image here; build one\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["--nonsense"], "see 'pyvmm --help'"),
        (["test", "--nonsense"], "see 'pyvmm test --help'"),
        (["test", "--number", "x"], "'x' is not a valid integer"),
        (["test", "extra"], "see 'pyvmm test --help'"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    add_command(monkeypatch, lambda: None)
    assert run_main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("pyvmm: ")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "section"), [([], "Control a running guest"), (["image"], "Commands")]
)
def test_a_group_without_a_command_shows_its_help(
    capsys: pytest.CaptureFixture[str], arguments: list[str], section: str
) -> None:
    assert run_main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"Usage: {' '.join(['pyvmm', *arguments])} ")
    assert f"\n\n{section}:\n" in err


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["run", "a", "--memory", "much"], "--memory"),
        (["run", "a", "--rng-limit", "much"], "--rng-limit"),
        (["balloon", "much", "--qmp", "unix:a"], "TARGET"),
        (["demo", "a", "--inflate", "much"], "--inflate"),
    ],
)
def test_an_invalid_size_names_its_option(
    capsys: pytest.CaptureFixture[str], arguments: list[str], option: str
) -> None:
    assert run_main(arguments) == 2
    err = capsys.readouterr().err
    assert f"Invalid value for '{option}': 'much' is not a size" in err.translate(NO_BRACKETS)


@pytest.mark.parametrize(
    ("text", "memory_mib"),
    [("6G", 6144), ("1G", 1024), ("1.5G", 1536), ("2048", 2048), (str(3 << 30), 3072)],
)
def test_the_memory_of_the_lab_is_a_size(text: str, memory_mib: int) -> None:
    """A number without a unit that is too small for bytes is in MiB, as it always was."""
    assert parse_memory(text) == memory_mib


@pytest.mark.parametrize("text", ["512M", "1023", "0", "much"])
def test_the_lab_refuses_too_little_memory(capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert run_main(["lab", "--memory", text, "true"]) == 2
    assert "Invalid value for '--memory'" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["0", "nan", "inf", "-1", "x"])
def test_the_lab_refuses_an_invalid_timeout(
    capsys: pytest.CaptureFixture[str], seconds: str
) -> None:
    assert run_main(["lab", "--timeout", seconds, "true"]) == 2
    assert "Invalid value for '--timeout'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "{own}"],
        ["run", "--kernel", "{shared}", "--initrd", "{own}"],
        ["demo", "{own}", "--output", "{shared}-output"],
        ["demo", "{shared}", "--output", "{own}-output"],
    ],
)
def test_files_that_the_lab_does_not_share_are_refused_before_it_starts(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
) -> None:
    monkeypatch.setattr("pyvmm.cli.lab.run_in_lab", lambda *_, **__: pytest.fail("started"))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as own:
        names = {"own": f"{own}/file", "shared": str(tmp_path / "file")}
        for name in names.values():
            Path(name).write_bytes(elf_kernel())
        filled_in = [argument.format_map(names) for argument in arguments]
        assert run_main([*filled_in, "--kvm", "lab"]) == 2
    assert "the lab does not share /dev with the host, so not" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["measurements.json", "resident-memory.png"])
def test_the_demo_replaces_no_file_of_others_and_says_so_before_it_measures(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("mine")
    assert run_main(["demo", "absent.img", "--output", str(tmp_path)]) == 2
    assert f"{tmp_path / name} cannot be written: a file with other" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--memory", "1M"], "1 MiB is too small for this demo; choose --memory 320M or more"),
        (["--output", "/proc/nowhere"], "/proc/nowhere: No such file or directory; choose another"),
        ([], "cannot read absent.img"),
    ],
)
def test_the_demo_refuses_bad_arguments_before_it_measures(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_main(["demo", "absent.img", "--kvm", "host", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "no kernel to boot is given; give either IMAGE or --kernel FILE"),
        (["run", "a", "--kernel", "b"], "both IMAGE and --kernel are given"),
        (["run", "--kernel", "/nowhere/vmlinuz"], "cannot read /nowhere/vmlinuz"),
    ],
)
def test_run_needs_exactly_one_kernel(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert run_main(arguments) == 2
    assert words in capsys.readouterr().err


def test_an_interrupt_gives_status_130(monkeypatch: pytest.MonkeyPatch) -> None:
    add_command(monkeypatch, fail_with(KeyboardInterrupt()))
    assert run_main(["test"]) == 130


def test_other_exceptions_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    add_command(monkeypatch, fail_with(ZeroDivisionError("ours")))
    with pytest.raises(ZeroDivisionError, match="ours"):
        cli.main(["test"])


def test_missing_native_modules_are_a_user_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "needs_native.py").write_text("import pyvmm_native.absent\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(cli.COMMANDS, "test", cli.LazyCommand("needs_native", "x", "x", cli.TOOLS))
    assert run_main(["test"]) == 2
    assert "make native" in capsys.readouterr().err


def test_a_closed_standard_output_gives_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [sys.executable, "-m", "pyvmm", "--help"],
        cwd=ROOT,
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert process.returncode == 1
    assert process.stderr == b""


def test_ctrl_c_gives_no_traceback() -> None:
    script = (
        "import os, signal, sys, click\n"
        "from pyvmm.cli import main as cli\n"
        "@click.command\n"
        "def test(): os.kill(os.getpid(), signal.SIGINT); signal.pause()\n"
        "cli.COMMANDS['test'] = cli.LazyCommand('__main__', 'test', '', cli.TOOLS)\n"
        "cli.main(['test'])\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.returncode == 130
    assert b"Traceback" not in process.stderr


def test_help_imports_no_subcommand() -> None:
    script = (
        "import sys\n"
        "from pyvmm.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'asyncio', 'rich', 'ctypes', 'guest_images', 'pyvmm.cli.balloon'}\n"
        "sys.exit(sorted(heavy & set(sys.modules)).__repr__() if heavy & set(sys.modules) else 0)\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("limit", [5, 8, 14])
def test_too_few_descriptors_are_one_line(limit: int) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "pyvmm", "run", "--incoming", "unix:/absent/socket"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
        timeout=60,
        check=False,
    )
    assert process.returncode == 2
    assert process.stderr.startswith(f"pyvmm: at most {limit} files may be open")
    assert process.stderr.count("\n") == 1
