# SPDX-License-Identifier: Apache-2.0
"""Manual pages and completions: up to date, well-formed, and working in bash."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pyvmm.cli.main import COMMANDS, THEMES
from pyvmm.runtime_directory.announcement import announce
from pyvmm_docs import command_reference, completions
from pyvmm_docs.command_tree import help_option, root, spans, walk
from pyvmm_docs.generate import SHARE, generated_files
from pyvmm_docs.manual_pages import manual_pages

COMPLETE = """
source {script}
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_pyvmm
echo "${{COMPREPLY[*]}}"
"""


def test_the_installed_files_are_up_to_date() -> None:
    present = {path: path.read_text() for path in SHARE.rglob("*") if path.is_file()}
    assert present == generated_files(), "run: make generated"


def test_the_help_option_has_the_names_of_its_context() -> None:
    """Click caches the option with the names that it has at the first call of its command."""
    command = click.Command("command")
    CliRunner().invoke(command, ["--help"])
    context = click.Context(command, help_option_names=["-h", "--help"])
    assert help_option(command, context).opts == ["-h", "--help"]


def test_every_command_has_a_manual_page() -> None:
    assert {"pyvmm.1", *(f"pyvmm-{name}.1" for name in COMMANDS)} == set(manual_pages())


def test_a_manual_page_has_all_options_and_texts() -> None:
    pages = manual_pages()
    for command in walk(root()):
        page = pages["-".join(command.name.split()[:2]) + ".1"].replace("\\-", "-")
        for option in command.options:
            for name in option.names:
                assert rf"\fB{name}\fR" in page
            plain = next(spans(option.help))[0]
            assert plain in page


def test_every_manual_page_has_an_exit_status() -> None:
    assert [name for name, text in manual_pages().items() if ".SH EXIT STATUS" not in text] == []


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_groff_has_no_warnings(tmp_path: Path) -> None:
    for name, text in manual_pages().items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["groff", "-man", "-ww", "-T", "utf8", "-z", *manual_pages()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["st"], "status stop stats"),
        (["run", "--dia"], "--dialect"),
        (["run", "guest.img", "--dialect", ""], "standard bitmap hybrid ranges"),
        (["image", ""], "build info where"),
        (["image", "build", "--so"], "--source"),
        (["stop", ""], "--vm --qmp -h --help"),
        (["run", "--kernel", "vm"], ""),  # bash completes file names
        (["lab", "--", "ls", "--"], ""),  # options of another command
    ],
)
def test_bash_completes_commands_options_and_choices(words: list[str], found: str) -> None:
    script = SHARE / "bash-completion" / "completions" / "pyvmm"
    done = subprocess.run(
        ["bash", "--norc", "-c", COMPLETE.format(script=script), "bash", "pyvmm", *words],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == (f"{found}\n", "")


def test_bash_completes_the_names_of_running_guests() -> None:
    script = SHARE / "bash-completion" / "completions" / "pyvmm"
    words = ["bash", "--norc", "-c", COMPLETE.format(script=script), "bash", "pyvmm", "stop"]
    with announce("web-a"), announce("web-b"), announce("db"):
        done = subprocess.run([*words, "--vm", "web"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("web-a web-b\n", "")
    done = subprocess.run([*words, "--vm", ""], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("\n", "")


def test_every_option_is_completed_in_every_shell() -> None:
    bash, zsh, fish = completions.bash(), completions.zsh(), completions.fish()
    for command in walk(root()):
        for option in command.options:
            for name in option.names:
                assert name in bash
                assert name in zsh
                assert f"-{'l' if name.startswith('--') else 's'} {name.lstrip('-')}" in fish


def test_options_and_quoted_commands_are_code() -> None:
    text = "Use --tls-ca, or 'pyvmm run --incoming unix:a'; a guest's IP-address."
    assert [part for part, code in spans(text) if code] == [
        "--tls-ca",
        "pyvmm run --incoming unix:a",
    ]
    assert "".join(part for part, _ in spans(text)) == (
        "Use --tls-ca, or pyvmm run --incoming unix:a; a guest's IP-address."
    )


def test_the_reference_has_a_section_for_each_command_and_theme() -> None:
    text = command_reference.markdown(root())
    for command in list(walk(root()))[1:]:
        assert f" `{command.name}`\n" in text
    for theme in THEMES:
        assert f"\n## {theme}\n" in text
    assert command_reference.prose("a *b* [c] <d>") == r"a \*b\* \[c\] \<d\>"
