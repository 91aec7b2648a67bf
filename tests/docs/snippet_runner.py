# SPDX-License-Identifier: Apache-2.0
"""Run the snippets of a page as its reader does: in order, in one folder, which is empty at first.

A file is written, commands are executed by a shell, statements by an interactive session
(`tests.docs.session`), which a new file ends, as its reader starts again to use it. Output, which
includes standard error, has to be that of the page, where

* `...` stands for any text, as in doctest;
* a time such as `0.05s` or `1.5 s` stands for any time.

A command whose output the page does not show has to succeed.
"""

from __future__ import annotations

import doctest
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.docs.snippets import Snippet, SnippetError
from tests.project.sources import ROOT

COMMAND_TIMEOUT_S = 120.0
_TIME = re.compile(r"\b\d+\.\d+ ?s\b")
_CHECKER = doctest.OutputChecker()
_PARSER = doctest.DocTestParser()


class SnippetRunner:
    """Runs snippets in `folder`, with the packages of this tree; use it in a `with` block."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST")},
            "PATH": path,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'cython_src'}",
            "PYTHONDONTWRITEBYTECODE": "1",  # a changed file may have its former size and time
            "COLUMNS": "80",
        }
        self._session: subprocess.Popen[str] | None = None

    def __enter__(self) -> SnippetRunner:
        return self

    def __exit__(self, *exc: object) -> None:
        self._end_session()

    def run(self, snippets: Iterable[Snippet]) -> None:
        """Run `snippets`. Raises SnippetError for one that does not do what the page shows."""
        for snippet in snippets:
            try:
                self._run(snippet)
            except SnippetError as error:
                raise SnippetError(f"line {snippet.line}: {error}") from None

    def _run(self, snippet: Snippet) -> None:
        if snippet.kind == "file":
            self._end_session()
            (self._folder / snippet.file).write_text(snippet.text)
        elif snippet.kind == "console":
            for block in re.split(r"^\$ ", snippet.text, flags=re.MULTILINE)[1:]:
                command, _, expected = block.partition("\n")
                self._run_command(command, expected)
        else:
            for example in _PARSER.get_examples(snippet.text):
                self._run_statement(example)

    def _run_command(self, command: str, expected: str) -> None:
        done = subprocess.run(
            command,
            shell=True,
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
        )
        if expected:
            _compare(command, expected, done.stdout)
        elif done.returncode:
            raise SnippetError(f"{command}: status {done.returncode}\n{done.stdout}")

    def _run_statement(self, example: doctest.Example) -> None:
        session = self._session = self._session or self._start_session()
        assert session.stdin is not None
        assert session.stdout is not None
        session.stdin.write(json.dumps(example.source) + "\n")
        session.stdin.flush()
        reply = session.stdout.readline()
        if not reply:
            raise SnippetError(f"{example.source}the session has ended")
        expected, actual = example.want, json.loads(reply)
        if example.exc_msg is not None:
            expected = f"Traceback (most recent call last):\n{example.exc_msg}"
            actual = f"{actual.rstrip()}\n"  # a message may end with an empty line
        _compare(example.source.strip(), expected, actual)

    def _start_session(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.docs.session"],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _end_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.communicate(timeout=COMMAND_TIMEOUT_S)


def _compare(source: str, expected: str, actual: str) -> None:
    expected, actual = (_TIME.sub("N s", text) for text in (expected, actual))
    if not _CHECKER.check_output(expected, actual, doctest.ELLIPSIS):
        raise SnippetError(f"{source}\nthe page shows:\n{expected}\nthe output is:\n{actual}")
