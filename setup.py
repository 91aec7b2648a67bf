# SPDX-License-Identifier: Apache-2.0
"""Steps of the build that pyproject.toml cannot express.

A package index shows README.md without the repository around it, so the description in the metadata
has absolute links, to the files of the released version. Native modules are stripped, except in a
checkout (`build_ext --inplace`) and with `build_ext --debug`.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.egg_info import egg_info

ROOT = Path(__file__).parent
CODE_OR_LINK = re.compile(
    r"```.*?```|`[^`]*`|\]\((?P<path>[\w./-]+)(?P<anchor>#[\w-]+)?\)", re.DOTALL
)
PICTURES = {".png", ".svg"}


def with_absolute_links(markdown: str, repository: str, tag: str) -> str:
    """Return the text with each link to a file of this tree replaced by its address at `tag`."""

    def absolute(match: re.Match[str]) -> str:
        path, anchor = match["path"], match["anchor"] or ""
        if path is None:
            return match[0]
        view = "raw" if Path(path).suffix in PICTURES else "blob"
        return f"]({repository}/{view}/{tag}/{path}{anchor})"

    return CODE_OR_LINK.sub(absolute, markdown)


class MetadataForIndex(egg_info):
    """Write the metadata with a description whose links work outside the repository."""

    def run(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        metadata = self.distribution.metadata
        metadata.long_description = with_absolute_links(
            (ROOT / "README.md").read_text(), project["urls"]["Repository"], f"v{metadata.version}"
        )
        super().run()


class StrippedModules(build_ext):
    """Link the native modules without symbols, unless they are built for development."""

    def build_extension(self, ext: Extension) -> None:
        if not (self.inplace or self.debug):
            ext.extra_link_args.append("-Wl,--strip-all")
        super().build_extension(ext)


setup(cmdclass={"egg_info": MetadataForIndex, "build_ext": StrippedModules})
