# SPDX-License-Identifier: Apache-2.0
"""The process that runs one check on a student's file: `python -m ... NUMBER FILE RESULT_FD`.

The file is executed as the module `exercise` and given to the chapter's `check`. The outcome is
written to the descriptor RESULT_FD as a JSON object `{"passed": ..., "message": ...}`. Limits on
memory and on what is written keep a mistake in the file from becoming one of the computer; they are
no protection against a file with bad intentions, which runs with all rights of the student.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import resource
import sys
import traceback
from pathlib import Path
from types import ModuleType

from pyvmm.learn.checking import CheckFailed
from pyvmm.units import GIB, MIB

MAX_MEMORY_BYTES = 2 * GIB
"""Address space of the process."""
MAX_OUTPUT_BYTES = MIB
"""Most bytes that the file may print."""
MAX_TEXT_CHARS = 1000
"""Most characters of the text of an exception that a message has."""
MODULE_NAME = "exercise"


def main() -> None:
    """Run the check, write its outcome, and end the process."""
    number, path, result_fd = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    check = importlib.import_module(f"pyvmm.learn.chapter_{number:02d}.check").check
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_OUTPUT_BYTES, MAX_OUTPUT_BYTES))
    module = ModuleType(MODULE_NAME)
    module.__file__ = str(path)
    sys.modules[MODULE_NAME] = module
    passed, message = False, ""
    try:
        code = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
        exec(code, vars(module))
        check(module)
        passed = True
    except BaseException as error:
        message = describe(error, module, path)
    os.write(result_fd, json.dumps({"passed": passed, "message": message}).encode())
    with contextlib.suppress(OSError):  # the limit of the output
        sys.stdout.flush()
    os._exit(0)  # threads and exit handlers of the file do not delay the end


def describe(error: BaseException, module: ModuleType, path: Path) -> str:
    """Return the reason why the check of the file at `path` ended with `error`, in words."""
    if isinstance(error, CheckFailed):
        return str(error)
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"The file is not valid Python: line {error.lineno}: {error.msg}."
    if isinstance(error, AttributeError) and error.obj is module:
        return f"The file does not define `{error.name}`, which the check uses."
    place = _place(error, path)
    if isinstance(error, SystemExit):
        return f"The file ends the program{place} instead of returning."
    if isinstance(error, MemoryError):
        return f"The file needs more than {MAX_MEMORY_BYTES // GIB} GiB of memory{place}."
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return f"The file prints more than {MAX_OUTPUT_BYTES // MIB} MiB{place}."
    text = f"{type(error).__name__}: {str(error)[:MAX_TEXT_CHARS]}".rstrip(": ")
    if not place and traceback.extract_tb(error.__traceback__)[-1].filename != __file__:
        return f"The check cannot use a value that the file has returned or set: {text}"
    return f"The file raises an exception{place}: {text}"


def _place(error: BaseException, path: Path) -> str:
    """Return the innermost line of the file on the way to `error`, as " in line N (f)", or ""."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    if not frames:
        return ""
    name = frames[-1].name
    return f" in line {frames[-1].lineno}" + ("" if name == "<module>" else f" ({name})")


if __name__ == "__main__":
    main()
