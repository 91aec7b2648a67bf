# SPDX-License-Identifier: Apache-2.0
"""Write the generated files that are installed with pyvmm: `python -m pyvmm_docs.generate`.

They lie in `share/`, which has the layout of the directory of that name in an installation, so that
packages install it as it is. `tests/docs/test_generated_files.py` fails when they are out of date.
"""

from __future__ import annotations

from pathlib import Path

from pyvmm_docs import completions
from pyvmm_docs.manual_pages import manual_pages

SHARE = Path(__file__).parents[2] / "share"


def generated_files() -> dict[Path, str]:
    """Return the contents of all generated files by their paths."""
    pages = {SHARE / "man" / "man1" / name: text for name, text in manual_pages().items()}
    return pages | {
        SHARE / "bash-completion" / "completions" / "pyvmm": completions.bash(),
        SHARE / "zsh" / "site-functions" / "_pyvmm": completions.zsh(),
        SHARE / "fish" / "vendor_completions.d" / "pyvmm.fish": completions.fish(),
    }


def main() -> None:
    """Write the files, and remove manual pages of former commands."""
    files = generated_files()
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for page in (SHARE / "man" / "man1").iterdir():
        if page not in files:
            page.unlink()


if __name__ == "__main__":
    main()
